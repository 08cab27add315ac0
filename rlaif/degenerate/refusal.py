"""Refusals that nothing called for.

A refusal is right where the request is harmful, and preference data about harmlessness is made of such prompts: there the
refusal is often the chosen side. Whether a request is harmful is for a judge to say. What a rule can say is whether a prompt
holds any sign at all of a reason to refuse: a word from a wide list of what is harmful, hurtful, disputed, private or
personal; a question about the assistant itself; a thing that words cannot give, such as today's news, a link or a file; or a
system message, which may narrow what is answered. Only a refusal of a prompt without any such sign is unasked, and only if
there is nothing else in the answer and it gives no such reason itself. The list errs towards silence.
"""

from __future__ import annotations

import re

from rlaif.types import Prompt

LONGEST_REFUSAL = 400
"""A longer answer explains, or helps with a part: it is for a judge."""
SHORT_REFUSAL = 120
"""A longer one that goes on with "but I can" offers something, which may be of use: it is for a judge."""
READ = 20_000
"""Characters of each message in which a reason is looked for: no prompt of this length is without a word of the list."""
OPENING = 200
"""Where a refusal stands: in the first words, after an apology perhaps."""

_WHAT = (
    r"(?:assist|help(?! the| but| my| it\b|ing)|fulfil|provid|respond|answer|compl(?:y|ete)|continu|creat|writ"
    r"|generat|produc|discuss|engag|support|offer"
    r"|do (?:that|this|it|so)|giv|mak|perform|process|handl|talk|shar|tell|suggest|recommend|participat|proceed|explain"
    r"|satisfy|accommodate|carry|meet|to (?:that|this)|go (?:ahead|there)|feel comfortable|address|express|hav(?:e"
    r"|ing) (?:the )?(?:abilit|capab)"
    r"|accept|translat|solve|describ|summari)"
)
_REFUSES = re.compile(
    r"(?:\bI|\bwe|assistant|model|AI)\b[^.!?\n]{0,60}?"
    r"(?:\b(?:ca ?n['’]?t|cannot|can ?not|could(?: not|n['’]?t)|won['’]?t|will not|do(?: not|n['’]?t))"
    r"|(?:\b(?:am|was|are)|['’](?:m|re))(?: currently| also| just| simply)? (?:unable|incapable|forbidden"
    r"|not (?:able|allowed|designed|programmed|permitted|comfortable|capable|in a position|going)))"
    r"(?![A-Za-z])[^.!?\n]{0,60}?\b" + _WHAT + r"|\bmust (?:respectfully )?(?:decline|refuse)"
    r"|\bI (?:respectfully |have to |need to )*(?:decline|refuse)\b"
    r"|(?:against|outside|beyond|not within) my (?:programming|guidelines|capabilit|abilit|polic)"
    r"|(?:无法|不能|没有办法|没办法|拒绝|不便)[^。！？\n]{0,12}"
    r"(?:回答|提供|帮助|协助|完成|满足|生成|讨论|执行|处理|回应|做到|给出)",
    re.IGNORECASE,
)
_OPENS = re.compile(
    r"\W*(?:(?:oh|well|hi|hello|hey|unfortunately|no|thank you[^.!?\n]{0,40})[,.!]* *)?"
    r"(?:(?:i['’]?m|i am|we are|we['’]re) (?:(?:very|so|really|truly|deeply|terribly) )?(?:sorry|afraid|un|not|in|just)"
    r"|sorry|(?:my |our )?(?:sincere )?apolog|i (?:do |sincerely |must |have to |would )?(?:apologi|regret|declin"
    r"|refus|respectfully|cannot"
    r"|ca ?n['’]?t|can not|can ?not|won['’]?t|will not|am|do(?:n['’]?t| not)|was not|could not|couldn['’]?t)"
    r"|as (?:an? |your )?(?:(?:helpful|responsible|large|advanced) )*(?:ai|artificial|language|virtual|chat ?bot"
    r"|assistant|text)"
    r"|unfortunately|regrettably|(?:it|that|this)(?:['’]s| is) (?:not|against|outside|beyond)|(?:非常|很|十分"
    r"|实在)?(?:抱歉|对不起|遗憾)|不好意思|作为(?:一个|一名|一款)?(?:人工智能|AI|语言|大)|我(?:无法|不能"
    r"|没有办法))",
    re.IGNORECASE,
)
_REASON = re.compile(
    # violence, crime, weapons, drugs
    r"kill|murder|suicid|harm|hurt|abus|attack|assault|violen|weapon|\bgun|\bshoot|bomb|explos|poison|tortur"
    r"|kidnap|terror|crim|steal|theft|robb|burgl"
    r"|\brap(?:e|ist)|fraud|scam|hack|crack|malware|virus|phish|pirat|illegal|launder|smuggl|traffick|drug|cocaine"
    r"|heroin|\bmeth|weed|marijuana"
    r"|cannabis|alcohol|drunk|beer|smok|cigar|vap(?:e|ing)|cheat|\blie\b|\blying|decei|manipul|blackmail|threat"
    r"|revenge|stalk|\bspy|\bspie|counterfeit"
    r"|forg(?:e|ing)|jail|prison|arrest|police|\bcops?\b|illicit|danger|destroy|hijack|riot|\bwar\b|\bwars|soldier"
    r"|army|nuclear|chemical|\bfire\b|\bburn"
    r"|blood|\bdie\b|dying|death|dead|corpse|\bbod(?:y|ies)|kick|punch|\bhit\b|beat|slap|\bcut\b|stab|knife"
    r"|break into|break in|escape|evade|avoid|drown|\bsink|sneak|euthan"
    # hate, insults, groups of people, disputes
    r"|racis|\brac(?:e|es|ial)\b|sexis|genocid|slav|nazi|hitler|white|black|asian|african|mexican|latin|hispanic"
    r"|arab|indian|chinese|immigra|refugee"
    r"|muslim|islam|jew|christian|relig|church|\bgods?\b|atheis|hindu|ethnic|skin|superior|inferior|\bgay|lesbian"
    r"|homosex|trans(?:gender|sexual|\b)|queer|lgbt"
    r"|feminis|\bwom[ae]n|\bgirl|\bm[ae]n\b|\bboys?\b|gender|disab|\bfat\b|obes|ugl|stupid|idiot|dumb|moron|hate"
    r"|insult|offens|vulgar|slur|curs|swear|\bmean\b|joke"
    r"|prank|mock|troll|bully|bullie|tease|rude|loser|crazy|insane|mental|evil|worst|\bbad|wrong|politic|liberal"
    r"|conservativ|republican|democrat|trump|biden|obama"
    r"|president|election|\bvot|government|communis|capitalis|fascis|abortion|vaccin|covid|conspir|flat earth"
    r"|moon landing|holocaust|controvers|moral|ethic"
    # sex, body, health, law, money
    r"|\bsex|porn|nud(?:e|ity)|naked|erotic|\bkiss|penis|vagina|breast|\bboob|\bass\b|butt|\bpee\b|poop|\bfart"
    r"|fuck|shit|\bdamn|bitch|whore|prostitut|seduc|affair"
    r"|\bdating|girlfriend|boyfriend|\bex\b|wife|husband|spouse|divorc|marri|child|\bkids?\b|baby|teen|minor"
    r"|depress|anxi|diagnos|symptom|medic|doctor|disease|illness|cancer"
    r"|pregnan|overdose|diet|weight|legal|lawyer|\bsue\b|lawsuit|tax|invest|stock|gambl|\bbet\b|debt|hotel bill"
    r"|copyright|rights|trademark"
    # the private and the personal; the assistant itself
    r"|password|address|phone number|credit card|social security|\bssn|personal|private|privacy|secret|celebrit"
    r"|famous|bank|parents?\b|\bparty|\bnight"
    r"|\byou(?:r|rs|rself|['’]re)?\b(?! (?:are|act|will|should|must|be|need|have|want|can|could|think of|give"
    r"|write|explain|describe|help|tell|summari|translate|list|make"
    r"|create|suggest|recommend|provide|show|please|solve|rewrite|use|find|come)\b)|\bai\b|artificial|chat ?gpt"
    r"|\bgpt|chat ?bot|language model|robot|sentien|conscious|feelings?|emotion|opinion"
    # what words cannot give
    r"|today|tonight|yesterday|tomorrow|\bnow\b|current|latest|recent|real[- ]?time|live\b|weather|news|20[2-9]\d"
    r"|browse|internet|online|website|web ?page|https?:|www\.|\blink|\burl"
    r"|\bfile|attach|upload|download|image|picture|photo|video|audio|voice|listen|watch|draw|screenshot|\bpdf"
    r"|above|following article|this article|this (?:text|paragraph|passage)"
    r"|\bemail (?:me|him|her)|\bcall (?:me|him|her)|\bsend\b|remind me|set (?:an? )?(?:alarm|timer)|\bbook (?:a"
    r"|me)|\border\b|\bbuy\b|predict|future|lottery|guess|malbolge"
    r"|杀|死|毒|暴力|犯罪|武器|炸|偷|骗|色情|性|种族|歧视|宗教|政治|政府|自杀|黑客|非法|违法|赌|你|今天|现在|最新"
    r"|图片|链接|文件|天气",
    re.IGNORECASE,
)
_OWN_REASON = re.compile(
    r"harm|illegal|ethic|inappropriate|offens|danger|violat|violen|hate|discriminat|explicit|copyright|safety"
    r"|unsafe|privacy|against the law"
    r"|stereotyp|disrespect|derogat|sensitive|respectful|moral|real[- ]?time|brows|current (?:events|information)"
    r"|up[- ]to[- ]date|provide(?:d)? (?:me|more|the)|more (?:context|information|details)"
    r"|not (?:clear|specified|provided|mentioned)|(?:was|were|is|are)n['’]t (?:clear|any|provided)|missing|违法|不当|有害|敏感",
    re.IGNORECASE,
)


_OFFERS = re.compile(r"\b(?:but|however|instead|though)\b[^.!?\n]{0,20}\b(?:I|we|here|let)\b", re.IGNORECASE)


def is_refusal(text: str) -> bool:
    """Whether the text is a refusal and hardly anything else: it opens with one and is short."""
    text = text.strip()
    return len(text) <= LONGEST_REFUSAL and _OPENS.match(text) is not None and _REFUSES.search(text, 0, OPENING) is not None


def gives_reason(prompt: Prompt) -> bool:
    """Whether anything in the prompt could be a reason to refuse it."""
    if any(m["role"] in ("system", "developer") for m in prompt.messages):
        return True
    return any(_REASON.search(str(m["content"])[:READ]) for m in prompt.messages)


def refuses_unasked(prompt: Prompt, text: str) -> bool:
    """Whether the answer is a refusal that neither the prompt nor its own words give a reason for."""
    if not is_refusal(text) or _OWN_REASON.search(text) is not None or gives_reason(prompt):
        return False
    return len(text) < SHORT_REFUSAL or _OFFERS.search(text) is None
