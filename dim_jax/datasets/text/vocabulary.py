"""The words that are written, and which of them are held out for the test."""

from functools import cache
from random import Random

from dim_jax.data.example import Split
from dim_jax.datasets.hashing import stable_hash

SEED = 6022  # of what is held out
SHARE = 0.1
NUMBERS = 0.12  # share of texts that are a number
TWO_WORDS = 0.25  # share of the others that have two words
CASES = (str.upper, str.title, str.lower)

# What stands on signs, covers, cards and screens; short enough to be read at 64 pixels.
SIGNS = """
open closed sale new free hot cold fresh sweet bitter salt spicy large small fast slow quiet loud clean dirty full empty early late coffee
tea milk juice water wine beer cocoa soda lemon apple pear plum peach cherry grape melon orange banana berry bread cake pie cookie pizza
pasta soup salad rice cheese butter honey sugar olive onion garlic pepper tomato carrot potato bean corn mushroom bakery market shop store
cafe bar hotel motel museum library school office bank post hospital pharmacy garden park zoo pool beach station airport harbor bridge
tower castle church temple palace theater cinema gallery studio stadium arena gym spa salon north south east west left right up down here
there enter exit push pull stop go wait start end pause play next back monday tuesday friday sunday today tomorrow winter spring summer
autumn january april june august october december morning evening night red gold silver amber coral ivory ruby jade pearl crystal diamond
copper iron steel stone wood glass paper cotton silk river lake ocean island valley desert forest meadow mountain canyon cloud storm
thunder rain snow wind fog sun moon star planet comet cat dog horse tiger lion bear wolf fox rabbit mouse eagle owl swan raven falcon
dolphin whale shark salmon turtle dragon rose lily tulip daisy violet orchid maple oak pine cedar willow bamboo cactus clover fern moss
love peace hope joy dream magic luck happy smile laugh dance sing music jazz rock opera piano guitar violin drum flute book story poem
letter news radio photo film camera pencil brush paint color canvas chess cards puzzle game prize winner train bus taxi tram ferry rocket
bicycle scooter truck van engine wheel ticket travel journey map compass anchor private public danger caution safe secret welcome hello
thanks sorry please goodbye congrats birthday wedding party picnic holiday doctor nurse pilot captain sailor farmer baker artist writer
teacher king queen knight wizard pirate robot ghost giant hero
"""
WORDS = tuple(SIGNS.split())


def split_of(word: str) -> Split:
    """The split of a word or number, in any case; it depends on nothing but the word."""
    return "test" if stable_hash(SEED, word.lower()) < SHARE * 2**64 else "train"


def sample_text(rng: Random, split: Split, case: int) -> str:
    """A text of one or two words, or a number, all of the split, in the case of that number in `CASES`."""
    if rng.random() < NUMBERS:
        while split_of(text := str(rng.randrange(10, 10_000))) != split:
            pass
        return text
    return CASES[case](" ".join(rng.sample(_words(split), 2 if rng.random() < TWO_WORDS else 1)))


@cache
def _words(split: Split) -> tuple[str, ...]:
    return tuple(word for word in WORDS if split_of(word) == split)
