"""The picture of the chain: every artifact of a real run, and what is damaged or swapped, told in it."""

import json
import shutil

from jaxlm.config.load import read_resolved
from jaxlm.contract import Manifest
from jaxlm.report.chain import chain, picture

from .test_page import Tree


def nodes_of(path):
    return chain(path, read_resolved(path / "resolved.json"))


def test_every_artifact_is_there_with_its_fingerprint_and_agrees(finished):
    nodes = nodes_of(finished)
    kinds = [node.kind for node in nodes]
    assert kinds[:4] == ["tokenizer", "data", "model", "run"]
    assert kinds[-1] == "evaluation"
    assert kinds.count("checkpoint") >= 2
    assert all(node.kept for node in nodes)
    assert nodes[0].fingerprint == Manifest.load(finished / "tokenizer").fingerprint
    assert [link.kind for link in nodes[3].links] == ["tokenizer", "data"]
    drawn = picture(nodes, name="r")
    tree = Tree(drawn)
    assert sum(tag == "rect" for tag, _ in tree.tags) == len(nodes)
    # data, model by the tokenizer, the run by both, and one line for each checkpoint and evaluation
    assert sum(tag == "path" for tag, _ in tree.tags) == 4 + kinds.count("checkpoint") + kinds.count("evaluation")
    assert 'class="broken"' not in drawn
    assert all(node.fingerprint[:16] in "".join(tree.text) for node in nodes)


def test_another_tokenizer_of_the_same_kind_breaks_every_link_to_it(run_copy):
    path = run_copy / "tokenizer"
    manifest = Manifest.load(path)
    Manifest(manifest.kind, {**manifest.facts, "vocab_size": 301}, manifest.parents, manifest.files).save(path)
    nodes = nodes_of(run_copy)
    assert [node.kind for node in nodes if node.kept] == ["tokenizer"]
    drawn = picture(nodes, name="r")
    assert "another tokenizer" in drawn
    assert "broken" in drawn


def test_what_cannot_be_read_says_why(run_copy):
    (run_copy / "data" / "manifest.json").write_text(json.dumps({"kind": "<script>"}))
    nodes = nodes_of(run_copy)
    assert "bytes that were written" in nodes[1].error
    drawn = picture(nodes, name="<script>")
    assert "cannot be read" in drawn
    assert "<script>" not in drawn


def test_an_evaluation_whose_checkpoint_was_not_kept_is_no_break(run_copy):
    shutil.rmtree(run_copy / "checkpoints" / "00000012")
    nodes = nodes_of(run_copy)
    assert all(node.kept for node in nodes)
    assert "its checkpoint is not kept" in picture(nodes, name="r")
