"""Which language a text is in, as far as its letters and its commonest words show; and answers in the wrong one.

Scripts are told by their Unicode ranges. Languages that share the Latin or the Cyrillic script are told by their function
words, which make up a third to a half of running text in each of them and hardly occur in the others. That needs a line or
two of prose: of names, code, formulas and single words nothing is said. Languages that are not in the tables are no language
to these rules. Where nothing is said, nothing is marked.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from rlaif.types import Prompt

SAMPLE = 800
"""Characters that are looked at, from the beginning of the prose: what comes later is in the language that it began in."""
GLANCE, GLANCE_SHARE, GLANCE_KINDS = 300, 0.08, 4
"""At this many characters it is mostly seen that an answer is in the prompt's language: with so many of its function words,
four different ones, no other language has half as many again."""
LEAST_WORDS = 12
"""Fewer words of prose are too few to tell: a name, a title, a label, a line of code."""
LEAST_WIDE = 20
"""Letters of a script without spaces, of which one or two make a word."""
WORDS_SHARE = 0.15
"""Function words of the language, among all words: running prose has 0.25 to 0.5, other languages' prose below 0.1."""
CLEAR_SHARE = 0.25
"""So many English function words are English, and no other language has to be tried."""
LEAD = 1.5
"""The language's function words are at least so many times those of the next one: some are shared ("de", "la", "en")."""
LEAST_KINDS = 6
"""So many different function words, or one in four words where they are few: one alone may be a name, a unit, a variable."""
SCRIPT_SHARE = 0.8
"""A text is in a script if so much of it is: two letters of Chinese count as a word, five of Latin."""
FOREIGN_SHARE = 0.1
"""A prompt that holds more of the answer's script than this is mixed: it may want either."""

_SCRIPTS = {
    "kana": "\u3040-\u30ff",
    "han": "\u3400-\u9fff\uf900-\ufaff",
    "hangul": "\uac00-\ud7af\u1100-\u11ff",
    "cyrillic": "\u0400-\u052f",
    "arabic": "\u0600-\u06ff\u0750-\u077f",
    "hebrew": "\u0590-\u05ff",
    "greek": "\u0370-\u03ff",
    "devanagari": "\u0900-\u097f",
    "bengali": "\u0980-\u09ff",
    "gurmukhi": "\u0a00-\u0a7f",
    "gujarati": "\u0a80-\u0aff",
    "tamil": "\u0b80-\u0bff",
    "telugu": "\u0c00-\u0c7f",
    "kannada": "\u0c80-\u0cff",
    "malayalam": "\u0d00-\u0d7f",
    "thai": "\u0e00-\u0e7f",
    "georgian": "\u10a0-\u10ff",
    "armenian": "\u0530-\u058f",
}
_WIDE_SCRIPTS = ("kana", "han", "hangul", "thai")
_LETTERS = {name: re.compile(f"[{ranges}]") for name, ranges in _SCRIPTS.items()}
_OTHER = re.compile(f"[{''.join(_SCRIPTS.values())}]")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")
_BY_SCRIPT = {
    "kana": "ja", "han": "zh", "hangul": "ko", "arabic": "ar", "hebrew": "he", "greek": "el", "devanagari": "hi",
    "bengali": "bn", "gurmukhi": "pa", "gujarati": "gu", "tamil": "ta", "telugu": "te", "kannada": "kn", "malayalam": "ml",
    "thai": "th", "georgian": "ka", "armenian": "hy",
}  # fmt: skip
_FUNCTION_WORDS = {
    "en": (
        "the of and to in is that it for with as was on are this be by at not from have or an but they which you can "
        "will has your"
    ),
    "de": (
        "der die das und in den von zu mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er "
        "hat dass sie nach ich wird bei einer um am sind noch wie einem über so zum war"
    ),
    "fr": (
        "le la les de des et un une du est que dans pour qui sur pas plus par avec ce il sont au nous vous cette je "
        "ou elle mais être aux ces ont en se son sa"
    ),
    "es": (
        "el la los las de y en que un una por con para del se es al lo como más pero sus su este esta son también "
        "muy fue ha entre sin sobre ser"
    ),
    "pt": (
        "o a os as de e em que um uma do da dos das para com não por no na se mais como mas ao foi são pelo pela "
        "você ser também muito sua seu ou está"
    ),
    "it": (
        "il lo la gli le di e che un una per in con del della dei delle è non sono si da al alla nel nella più come "
        "anche ma questo questa ha o suo sua essere"
    ),
    "nl": (
        "de het een en van in is dat op te zijn met voor niet aan er om ook als bij maar door naar deze wordt uit "
        "worden hij ze dit je kan nog wel"
    ),
    "sv": (
        "och att det som en på är av för med till den har de inte om ett var jag men kan från vi så sig när eller "
        "han nu ska du"
    ),
    "pl": "i w na z się nie do to że jest o jak od po dla przez za ale są czy tak ich który które oraz być może ma jego tym",
    "id": (
        "yang dan di dengan untuk ini itu dari dalam pada adalah tidak akan ke juga atau bisa ada saya anda oleh "
        "sebagai dapat telah mereka kami"
    ),
    "tr": "ve bir bu için ile da de daha çok gibi olarak olan ne kadar ama en var sonra her değil o şu ben sen",
    "vi": "và của là có không cho được một các với trong những người này để khi đã từ đến như cũng về ra sẽ tôi bạn",
    "sw": "ya na wa kwa ni katika la za cha kuwa yake hii hiyo kama pia au lakini watu sana huo hilo wake",
    "fi": "ja on ei se että oli hän mutta kun niin myös ovat joka ole tai kuin jos sen mitä ovat voi sitä",
    "ru": "и в не на что с по это как из для от он к но его а все так или я мы же вы у о за было при быть если она",
    "uk": "і в не на що з та це як до за від для у але він його або так ми є про ж ви був якщо вона її",
    "bg": "и в на не да се за от е са че с по като но или това до при ще му той тя ги която който си",
}  # fmt: skip
_CYRILLIC = ("ru", "uk", "bg")
_WORDS = {  # single Latin letters are variables and labels in any language
    language: frozenset(word for word in words.split() if len(word) > 1 or language in _CYRILLIC)
    for language, words in _FUNCTION_WORDS.items()
}
_LANGUAGES_OF = {
    word: tuple(language for language, known in _WORDS.items() if word in known)
    for word in sorted(set().union(*_WORDS.values()))
}
_NO_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|\$[^$\n]*\$", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+")
_NAMED = (  # languages, their varieties and those who speak them; the list errs towards silence
    "afrikaans albanian amharic arabic aramaic armenian assamese austrian azerbaijani azeri bahasa bambara bangla "
    "bashkir basque bavarian belarusian bengali berber bhojpuri bosnian brazilian breton bulgarian burmese cantonese "
    "castilian catalan cebuano chechen chichewa chinese cornish corsican creole croatian czech danish dari dutch "
    "dzongkha egyptian english esperanto estonian faroese farsi fijian filipino finnish flemish french frisian fulani "
    "gaelic galician georgian german greek greenlandic guarani gujarati hakka hausa hawaiian hebrew hindi hinglish "
    "hindustani hmong hokkien hungarian icelandic igbo ilocano indonesian inuktitut irish italian japanese javanese "
    "kannada kazakh khmer kinyarwanda kirundi klingon konkani korean kurdish kurmanji kyrgyz lao laotian latin "
    "latvian lingala lithuanian luganda luxembourgish macedonian malagasy malay malayalam maltese mandarin manx maori "
    "marathi mayan moldovan mongolian montenegrin nahuatl navajo neapolitan nepali norwegian nynorsk occitan odia "
    "oriya oromo papiamento pashto persian pidgin polish portuguese provencal punjabi putonghua quechua romanian "
    "romansh russian samoan sanskrit sardinian scots serbian sesotho shona sicilian sindhi sinhala sinhalese slovak "
    "slovene slovenian somali sorani spanglish spanish sundanese swahili swedish swiss tagalog tahitian taiwanese "
    "tajik tamazight tamil tatar telugu thai tibetan tigrinya tongan tswana turkish turkmen twi ukrainian urdu uyghur "
    "uzbek valencian vietnamese welsh wolof wu xhosa yiddish yoruba zulu "
    # as they call themselves, and as others do
    "englisch deutsch französisch spanisch italienisch portugiesisch niederländisch polnisch russisch türkisch "
    "anglais allemand français francais espagnol italien portugais néerlandais russe inglés ingles alemán aleman "
    "francés frances español espanol castellano italiano portugués portugues inglese tedesco francese spagnolo "
    "portoghese inglês alemão francês espanhol português brasileiro nederlands vlaams engels duits frans spaans "
    "svenska engelska norsk bokmål dansk íslenska suomi suomeksi englanniksi polski polsku angielsku čeština česky "
    "slovenčina slovensky slovenščina hrvatski srpski bosanski magyar magyarul română romana engleză shqip eesti "
    "latviešu lietuvių türkçe türkce ingilizce indonesia inggris melayu kiswahili kiingereza català catala euskara "
    "galego gaeilge cymraeg "
)
_ASKS_LANGUAGE = re.compile(
    r"translat|\blanguage|\blingu|翻译|翻譯|翻訳|번역|перевод|перевед|übersetz|tradu[cirz]|vertaal|语言|語言|文\b"
    rf"|\b(?:{'|'.join(_NAMED.split())})\b|tiếng (?:việt|anh)"
    r"|английск|русск|немецк|французск|испанск|китайск|українськ|англійськ|български|англий|српски|ελληνικ|αγγλικ"
    r"|עברית|באנגלית|العربية|الإنجليزية|فارسی|انگلیسی|हिन्दी|हिंदी|अंग्रेज़ी|ภาษา|[英中日韩法德俄汉漢葡意]文|[英日韩法德俄汉漢葡意]语"
    r"|西班牙|[英日韓法德俄漢葡意]語|粤语|普通话|영어|한국어|일본어|중국어",
    re.IGNORECASE,
)


def language_of(text: str) -> str | None:
    """The language's ISO 639-1 code; None where the text is too short, mixed, no prose or in a language that is not known."""
    return _told(text).language


def in_wrong_language(prompt: Prompt, text: str) -> bool:
    """Whether prompt and answer are in two languages that can be told, and the prompt neither names one nor mixes them.

    Of two scripts it need not be known which languages they write.
    """
    asked = str(prompt.messages[-1]["content"]) if prompt.messages else ""
    ours = _told_once(asked)
    if ours.script is None:
        return False
    if ours.language in _WORDS and _holds(_WORDS[ours.language], text[:GLANCE].lower().split()):
        return False  # as nearly every answer
    theirs = _told(text)
    if theirs.script is None:
        return False
    if theirs.script == ours.script:
        differ = None not in (ours.language, theirs.language) and ours.language != theirs.language
    else:
        differ = {ours.script, theirs.script} != {"han", "kana"} and ours.weights[
            theirs.script
        ] <= FOREIGN_SHARE * ours.weights.total()
    return differ and not names_language(prompt)


def names_language(prompt: Prompt) -> bool:
    """Whether any message names a language, or speaks of translation."""
    return any(_ASKS_LANGUAGE.search(str(m["content"])) for m in prompt.messages)


@dataclass(frozen=True, slots=True)
class _Told:
    """The language if it can be told, the script if it is prose of one, and about how many words there are in each script."""

    language: str | None
    script: str | None
    weights: Counter[str]


def _told(text: str) -> _Told:
    sample = text[: 2 * SAMPLE]
    if "`" in sample or "http" in sample or "$" in sample:
        sample = _NO_PROSE.sub(" ", sample)
    sample = sample[:SAMPLE]
    if sample.isascii() or _OTHER.search(sample) is None:
        words = _WORD.findall(sample.lower())
        language = _by_words(words, "latin")
        return _Told(language, language and "latin", Counter(latin=len(words)))
    weights = Counter({name: found for name, pattern in _LETTERS.items() if (found := len(pattern.findall(sample)))})
    wide = sum(weights[name] for name in _WIDE_SCRIPTS)
    for name in weights:
        weights[name] = weights[name] // 2 if name in _WIDE_SCRIPTS else weights[name] // 5
    weights["latin"] = len(_LATIN.findall(sample)) // 5
    if weights["kana"] and weights["kana"] * 6 >= weights["han"]:  # Japanese is written in both
        weights["kana"] += weights.pop("han", 0)
    script, most = weights.most_common(1)[0]
    if most < SCRIPT_SHARE * weights.total() or (most < LEAST_WORDS and (script not in _WIDE_SCRIPTS or wide < LEAST_WIDE)):
        return _Told(None, None, weights)
    if script not in ("latin", "cyrillic"):
        return _Told(_BY_SCRIPT[script], script, weights)
    language = _by_words(_WORD.findall(sample.lower()), script)
    return _Told(language, script if language or script != "latin" else None, weights)


_told_once = lru_cache(maxsize=64)(_told)


def _by_words(words: list[str], script: str) -> str | None:
    if len(words) < LEAST_WORDS:
        return None
    if script == "latin" and _holds(_WORDS["en"], words, CLEAR_SHARE, LEAST_KINDS):
        return "en"
    found = Counter(chain.from_iterable([_LANGUAGES_OF[word] for word in words if word in _LANGUAGES_OF]))
    if not found:
        return None
    (first, most), (_, next_most) = [*found.most_common(2), ("", 0)][:2]
    return first if most >= LEAD * next_most and _is_in(first, words) else None


def _is_in(language: str, words: list[str]) -> bool:
    """Whether enough of the words, and enough different ones, are function words of the language."""
    return _holds(_WORDS[language], words, WORDS_SHARE, min(LEAST_KINDS, len(words) // 4))


def _holds(known: frozenset[str], words: list[str], share: float = GLANCE_SHARE, kinds: int = GLANCE_KINDS) -> bool:
    return sum(map(known.__contains__, words)) >= share * len(words) and len(known.intersection(words)) >= kinds


def known_languages() -> list[str]:
    """The codes that `language_of` can give."""
    return sorted({*chain(_WORDS, _BY_SCRIPT.values())})
