"""UTF-8 that was decoded as something else is counted and refused; text of any language as it should be passes."""

import json

import pytest

from jaxlm.config.schema import DataConfig
from jaxlm.contract import InputError
from jaxlm.data import Counts, read_documents
from jaxlm.data.mojibake import Mojibake, sequences

TEXTS = {
    "French": "« Voilà », dit-elle à l’été : « liberté », égalité, À demain… Çà et là, NOËL, CAFÉ » œuvre",
    "German": "„Das macht Spaß“, sagte Jürgen – „ÄÖÜ äöü ß“ 20 °C, §\u00a05, 3\u00a0×\u00a010²",
    "Portuguese": "NÃO, IRMÃ “Ação” – São Paulo ÀS 10h, é º ª",
    "Vietnamese": "Tất cả mọi người sinh ra đều được tự do và bình đẳng",
    "Polish": "Zażółć gęślą jaźń, „CZEŚĆ”",
    "Russian": "Все люди рождаются свободными — «равными»",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι",
    "Hebrew": "כל בני האדם נולדו בני חורין",
    "Arabic": "يولد جميع الناس أحراراً",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระ",
    "Chinese": "人人生而自由,在尊严和权利上一律平等。",
    "emoji": "well done \U0001f600\U0001f680 and “quoted” — ½ € ™ ©",
}


def once_more(text, encoding):
    """`text` as it comes out where its UTF-8 is read in another encoding; what cp1252 lacks is read as in Latin-1."""
    return "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize("language", TEXTS)
def test_text_passes_whole_and_word_by_word(language):
    for text in (TEXTS[language], TEXTS[language].upper(), *TEXTS[language].split(" ")):
        assert not Mojibake().see(text, "here"), text


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize("language", TEXTS)
def test_the_same_text_decoded_wrongly_is_seen(language, encoding):
    seen = Mojibake()
    assert seen.see(once_more(TEXTS[language], encoding), "a.txt:7")
    assert (seen.documents, seen.beyond_ascii) == (1, 1)
    assert seen.first.startswith("a.txt:7, '")


def test_what_a_sequence_is():
    assert sequences("Ã© and â€™ and ðŸ˜€ and Â£") == ["Ã©", "â€™", "ðŸ˜€", "Â£"]
    assert sequences("é ’ £ Ã à la ï¿ â€ ÃÃ") == []
    assert not Mojibake().see("plain", "here")
    assert not Mojibake().see("naïve café über Ångström: “Ã©” is what becomes of é ŝ", "here")  # a text about it


def source(folder, texts):
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return DataConfig(source=(str(folder / "a.jsonl"),))


def test_a_source_with_much_of_it_is_refused_and_its_first_document_named(tmp_path):
    wrong = [once_more(text, "cp1252") for text in TEXTS.values()]
    cfg = source(tmp_path, ["plain", *TEXTS.values(), *wrong])
    counts = Counts()
    with pytest.raises(InputError, match=r"13 of 26 documents .*a\.jsonl:15, 'Â«' for '«'; .*--data\.max-mojibake"):
        list(read_documents(cfg, counts))
    assert counts.facts()["mojibake"] == 13
    allowed = DataConfig(source=cfg.source, max_mojibake=0.5)
    assert len(list(read_documents(allowed))) == 27
    stopped = DataConfig(source=cfg.source, max_bytes=sum(len(d.text.encode()) for d in read_documents(allowed)) - 1)
    with pytest.raises(InputError, match="12 of 25 documents"):
        list(read_documents(stopped))


def test_a_little_of_it_is_counted(tmp_path):
    counts = Counts()
    wrong = once_more(TEXTS["Russian"], "latin-1")
    assert len(list(read_documents(source(tmp_path, [*TEXTS.values(), wrong]), counts))) == 14
    assert counts.mojibake == 1
    assert len(list(read_documents(source(tmp_path, ["plain", "caf\u00c3\u00a9"])))) == 2  # one sequence can be chance


def test_the_standard_library_has_none():
    counts = Counts()
    for _ in read_documents(DataConfig(), counts):
        pass
    assert counts.mojibake == 0


def test_sentences_of_many_languages_have_little(real_data):
    for path in sorted((real_data / "langid_sentences" / "sentences").glob("*.txt")):
        seen = Mojibake()
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            seen.see(line, path.name)
        seen.require_little(0.1)
