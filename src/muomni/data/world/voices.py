"""The voices of the toy world: which train, which are held out, and the one that answers."""

from __future__ import annotations

# espeak-ng 1.52 variants. Left out: Lee, boris, Annie, Mario, belinda, Jacky, m8 (an outside recogniser
# missed a third of their words and more) and the two whispers. Source: reference/feas_tts.
_VARIANTS = (
    *(
        "Alex",
        "Alicia",
        "Andrea",
        "Andy",
        "AnxiousAndy",
        "Demonic",
        "Denis",
        "Diogo",
        "Gene",
        "Gene2",
        "Henrique",
        "Hugo",
    ),
    *(
        "Marco",
        "Michael",
        "Mike",
        "Nguyen",
        "Reed",
        "RicishayMax",
        "RicishayMax2",
        "RicishayMax3",
        "Storm",
        "Tweaky",
    ),
    *(
        "UniRobot",
        "adam",
        "anika",
        "anikaRobot",
        "announcer",
        "antonio",
        "aunty",
        "benjamin",
        "caleb",
        "croak",
        "david",
    ),
    *(
        "ed",
        "edward",
        "edward2",
        "f1",
        "f2",
        "f3",
        "f4",
        "f5",
        "fast",
        "grandma",
        "grandpa",
        "gustave",
        "ian",
        "iven",
    ),
    *(
        "iven2",
        "iven3",
        "iven4",
        "john",
        "kaukovalta",
        "klatt",
        "klatt2",
        "klatt3",
        "klatt4",
        "klatt5",
        "klatt6",
        "linda",
    ),
    *(
        "m1",
        "m2",
        "m3",
        "m4",
        "m5",
        "m6",
        "m7",
        "marcelo",
        "max",
        "michel",
        "miguel",
        "mike2",
        "norbert",
        "pablo",
        "paul",
    ),
    *(
        "pedro",
        "quincy",
        "rob",
        "robert",
        "robosoft",
        "robosoft2",
        "robosoft3",
        "robosoft4",
        "robosoft5",
        "robosoft6",
    ),
    *("robosoft7", "robosoft8", "sandro", "shelby", "steph", "steph2", "steph3", "travis", "victor", "zac"),
)

ANSWER_VOICE = (
    "en-us+m6"  # understood best by an outside recogniser (WER 0 of 26 variants). Source: reference/feas_tts
)
ANSWER_RATE_WPM = 160
ANSWER_PITCH = 50
HELD_OUT = tuple(f"en-us+{name}" for name in _VARIANTS[2::5])
TRAIN = tuple(f"en-us+{name}" for index, name in enumerate(_VARIANTS) if index % 5 != 2)
RATES_WPM = (130, 200)
PITCHES = (25, 75)
