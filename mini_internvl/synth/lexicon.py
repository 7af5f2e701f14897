"""The English words that images show, and what separates test texts from training texts.

Any text (word, number, code) belongs to exactly one split by a hash of its lower-case form, so a test text can never
occur in a training image. Texts of one or two characters are too few to divide and are used in training only.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import lru_cache

_WORDS = """
able about above across act action add address afraid after again against age ago agree air alarm album alert all allow
almost alone along also always amber among amount anchor ancient angle angry animal answer any apart apple april arch
area arm army around arrive arrow art article artist ask asleep atlas atom attic august aunt author autumn avenue award
away axis baby back bacon badge bag bake baker balance balcony ball balloon bamboo banana band bank banner barn barrel
base basic basin basket bat bath battery bay beach bead beam bean bear beard beast beat beauty beaver because become bed
bedroom bee beef beer before begin behave behind being believe bell belong below belt bench bend berry beside best
better between beyond bicycle big bike bill bin bird birth bishop bit bite bitter black blade blanket blast blaze blend
bless blind block blood bloom blossom blow blue board boat body boil bold bolt bomb bone bonus book boot border born
borrow boss both bottle bottom bow bowl box boy brain brake branch brave bread break breath brick bride bridge brief
bright bring broad broken bronze brook broom brother brown brush bubble bucket budget build bulb bull bullet bundle
burn bus bush busy butcher butter button buy cabbage cabin cable cactus cafe cage cake call calm camel camera camp can
canal candle candy canoe canvas cap capital captain car carbon card care cargo carpet carrot carry cart carve case cash
castle cat catch cattle cause cave ceiling cell cellar cement center century cereal certain chain chair chalk chance
change channel chapter charge charm chart chase cheap check cheek cheese chef cherry chess chest chicken chief child
chimney chin choice choose church cider cigar cinema circle circus citizen city claim class claw clay clean clear clerk
clever cliff climb clinic clock close closed cloth cloud clover clown club coach coal coast coat cobra cocoa coconut
code coffee coil coin cold collar collect college colour column comb come comedy comet comfort comic common compass
concert cone contact cook cool copper copy coral cord cork corn corner correct cost cottage cotton cough council count
country county couple courage course court cousin cover cow crab cradle craft crane crash crayon cream create credit
creek crew cricket crime crisp cross crow crowd crown cruise crust cry crystal cube cup cure curious current curtain
curve cushion custom cut cycle daily dairy daisy damage damp dance danger dark data date dawn day deal dear debt
december decide deck deep deer degree delay deliver demand den dense dentist depart depth desert design desk dessert
detail develop device dial diamond diary dice diesel diet dig dinner direct dirt discuss dish disk dive divide dock
doctor dog doll dollar dolphin domain dome donkey door dot double dough dove down dozen draft dragon drama draw drawer
dream dress drift drill drink drive driver drop drum dry duck dust duty eager eagle ear early earn earth east easy eat
echo edge editor effort egg eight either elbow elder elect electric element eleven elf else embassy empire empty end
enemy energy engine enjoy enough enter entire entry equal error escape evening event ever every evil exact exam example
except excuse exit expect expert explain express extra eye fabric face fact factory fade fail faint fair fairy faith
fall false fame family famous fan fancy far farm farmer fast fat father fault favour fear feast feather february fee
feed feel female fence fern ferry festival fever few fiber fiction field fifteen fifth fifty fig fight figure file fill
film filter final find fine finger finish fire firm first fish fist fit five fix flag flame flash flat flavour fleet
flesh flight float flock flood floor flour flow flower fluid flute fly foam focus fog fold folk follow food fool foot
force foreign forest forget fork form formal fort forty forward fossil found four fox frame free freedom freeze fresh
friday fridge friend frog from front frost frozen fruit fuel full fun fund funny fur future gain galaxy gallery gallon
game gap garage garden garlic gas gate gather gauge gear gem general gentle ghost giant gift ginger giraffe girl give
glad glass globe glory glove glow glue goal goat god gold golden golf good goose gossip grace grade grain grand grant
grape graph grass gravity gray great green greet grey grid grill grip ground group grow guard guess guest guide guitar
gulf gum gun guy gym habit hair half hall hammer hand handle happen happy harbor hard harm harp harvest hat hatch hate
have hawk hay hazel head heal health heap hear heart heat heaven heavy hedge heel height helmet help hen herb herd here
hero hidden high hill hint hip hire history hit hobby hockey hold hole holiday hollow holy home honest honey hood hook
hope horn horse hospital host hot hotel hour house how hub huge human humble humor hundred hungry hunt hurry hurt
husband hut ice icon idea ideal idle image impact inch include income indeed index indoor industry infant inform ink
inn input insect inside invite iron island item ivory jacket jaguar jail jam january jar jaw jazz jeans jelly jet jewel
job join joint joke journal journey joy judge juice july jump june jungle junior jury just justice keen keep kettle key
kick kid kidney kind king kitchen kite kitten knee knife knight knit knock knot know label labor lace ladder lady lake
lamb lamp land lane language lantern large laser last late laugh laundry lava law lawn lawyer layer lazy lead leader
leaf league lean learn leather leave lecture left leg legal legend lemon lend length lens leopard lesson letter level
lever liberty library lid life lift light like lily limb lime limit line linen link lion lip liquid list listen little
live liver lizard load loaf loan lobby lobster local lock log logic lonely long look loop loose lord lose loud lounge
love low loyal luck lucky lunch lung machine magic magnet maid mail main major make male mall mammal man manage mango
manner map maple marble march margin marine mark market marry mask mass master match mate maths matter may maybe mayor
maze meadow meal mean measure meat medal media medical medium meet melody melon melt member memory mend mental mention
menu mercy merry message metal meter method middle midnight mild mile milk mill million mind mine mineral minor mint
minute mirror miss mist mix mixture mobile model modern moment monday money monitor monkey month mood moon moral more
morning mosaic moss most motel mother motion motor mount mountain mouse mouth move movie much mud mug muscle museum
music must mystery nail name napkin narrow nation native nature navy near neat neck need needle nephew nerve nest net
network neutral never new news next nice night nine noble noise none noodle noon normal north nose note nothing notice
novel november now number nurse nut oak oasis oat object ocean october odd offer office officer often oil old olive
once one onion online only open opera opinion option oral orange orbit orchard order organ origin other otter ounce
our outdoor outer output outside oval oven over owl own owner oxygen oyster pack package paddle page pain paint pair
palace pale palm pan panda panel panic paper parade parcel parent paris park parrot part partner party pass past pasta
paste patch path patient patrol pattern pause pay pea peace peach peak peanut pear pearl pedal pen pencil penguin penny
people pepper perfect perfume perhaps period permit person pet petal phone photo phrase piano pick picnic picture pie
piece pig pigeon pile pill pillow pilot pin pine pink pioneer pipe pirate pistol pit pizza place plain plan plane
planet plant plastic plate play player please plenty plot plow plug plum pocket poem poet point polar pole police
policy polish polite pond pony pool poor pop popular porch pork port portion post pot potato pottery pound powder power
praise pray prefer prepare present press pretty price pride priest prince print prison prize problem process produce
profit program promise proof proper protect proud prove public pull pulse pump pumpkin pupil puppet puppy purple purse
push puzzle pyramid quality quarter queen quest question quick quiet quilt quite quiz rabbit race rack radar radio raft
rail rain rainbow raise ranch random range rank rapid rare raven raw ray razor reach read ready real reason receipt
recipe record red reduce reef refer reform refuse region relax relay remain remark remind remote remove rent repair
repeat reply report request rescue rest result retire return reveal review reward rhythm ribbon rice rich ride ridge
rifle right ring rise risk ritual rival river road roast robe robin robot rock rocket rod role roll roof room root rope
rose rotate rough round route row royal rubber ruby rude rug rugby ruin rule ruler run runner rural rush rust sack sad
saddle safe safety sail sailor saint salad salary sale salmon salon salt same sample sand satin sauce sausage save saw
scale scarf scene school science scissors scoop score scout screen screw sea seal search season seat second secret
section see seed seek select self sell senate send senior sense serious servant serve service set seven shade shadow
shake shallow shape share shark sharp shed sheep sheet shelf shell shelter shield shift shine ship shirt shock shoe
shop shore short shot shoulder shout show shower shrimp shut shy sick side sight sign signal silence silk silver simple
since sing singer single sink sir sister six size skate sketch ski skill skin skirt skull sky slave sleep sleeve slice
slide slim slip slope slow small smart smell smile smoke smooth snack snail snake snow soap soccer social sock soda
sofa soft soil solar soldier solid solo some son song soon sorry sort soul sound soup sour source south space spare
spark speak spear special speech speed spell spend sphere spice spider spin spirit split spoon sport spot spray spread
spring square squash stable stadium staff stage stair stamp stand star start state station statue stay steak steam
steel steep stem step stereo stick still sting stock stomach stone stool stop store storm story stove straight strange
straw stream street stress stretch strict strike string strong student studio study stuff style subject submit suburb
subway succeed success such sudden sugar suit summer sun sunday sunny sunset super supper supply support sure surf
surface surgeon surplus survey swamp swan sweater sweep sweet swift swim swing switch sword symbol syrup system table
tablet tail tailor take talent talk tall tank tape target task taste tax taxi tea teach teacher team tear tell temple
ten tennis tent term test text thank theatre theme theory thick thief thin thing think third thirty this thorn thread
three throat throne through throw thumb thunder thursday ticket tide tidy tie tiger tight tile timber time tin tiny tip
tired tissue title toast tobacco today toe toilet token tomato tomorrow tongue tonight tool tooth top topic torch total
touch tour tourist toward towel tower town toy track tractor trade traffic trail train transfer trap travel tray
treasure treat tree trend trial tribe trick trip trophy tropical trouble trousers truck true trumpet trunk trust truth
try tube tuesday tulip tunnel turkey turn turtle twelve twenty twice twin twist two type tyre ugly umbrella uncle under
uniform union unique unit unity up upper upset upstairs urban urge use useful usual valley value van vanilla vase
vehicle velvet vendor venture verb verse very vessel veteran victory video view villa village vine violet violin virus
visit visitor vivid voice volcano volume vote voyage wage wagon waist wait waiter wake walk wall wallet walnut war warm
warn warning wash waste watch water wave wax way weak wealth weapon wear weather web wedding week weekend weight welcome
well west wet whale wheat wheel when where while whip whisper whistle white whole wide widow width wife wild will win
wind window wine wing winner winter wire wise wish with within witness wizard wolf woman wonder wood wool word work
worker workshop world worm worry worth wound wrap wreck wrist write writer wrong yacht yard yarn year yellow yes
yesterday yoga yogurt you young youth zebra zero zone zoo
"""

TEST_SHARE = 0.12
"""Share of texts kept for test images."""

CLEAR_UPPER = "ABDEFGHJKLMNPQRTY"
"""Capitals that stay recognisable as capitals when they stand alone, no O and I."""
CLEAR_LOWER = "abdefghijkmnqrt"
"""Lower-case letters that stay recognisable as such when they stand alone, no l and o."""
UPPER = "ABCDEFGHJKLMNPQRSTUVWXYZ"
"""Capitals without O and I, which many fonts draw like 0 and 1."""
LOWER = "abcdefghijkmnopqrstuvwxyz"
"""Lower-case letters without l."""
DIGITS = "0123456789"
"""All ten."""


@lru_cache(maxsize=200_000)
def is_test(text: str) -> bool:
    """Whether a text belongs to the test split, by a hash of its lower-case form."""
    if len(text) <= 2:
        return False
    return int.from_bytes(hashlib.blake2b(text.lower().encode(), digest_size=4).digest(), "big") / 2**32 < TEST_SHARE


@lru_cache(maxsize=2)
def words(split: str) -> tuple[str, ...]:
    """The lower-case words of a split, 2 to 8 letters, sorted."""
    usable = sorted({w for w in _WORDS.split() if 2 <= len(w) <= 8})
    return tuple(w for w in usable if is_test(w) == (split == "test"))


def _random_text(rng: random.Random, length: int) -> str:
    """Letters of one case, digits, or both, without look-alikes."""
    style = rng.random()
    if style < 0.35:
        alphabet, clear = UPPER, CLEAR_UPPER
    elif style < 0.65:
        alphabet, clear = LOWER, CLEAR_LOWER
    elif style < 0.85:
        alphabet, clear = DIGITS, DIGITS
    else:
        alphabet, clear = UPPER + DIGITS, CLEAR_UPPER
    first = rng.choice(clear)
    rest = "".join(rng.choices(clear if length <= 2 else alphabet, k=length - 1))
    at = rng.randrange(length)
    return rest[:at] + first + rest[at:]


def _number(rng: random.Random) -> str:
    """An integer, a decimal number, a price, a percentage, a date or a time of at most 8 characters."""
    kind = rng.randrange(8)
    if kind <= 1:
        return str(rng.randrange(10 ** rng.randint(1, 6)))
    if kind == 2:
        return f"{rng.randrange(1000)}.{rng.randrange(10)}"
    if kind == 3:
        return f"{rng.choice('$€£')}{rng.randrange(200)}.{rng.choice((0, 50, 95, 99, rng.randrange(100))):02d}"
    if kind == 4:
        return f"{rng.randrange(101)}%" if rng.random() < 0.6 else f"{rng.randrange(100)}.{rng.randrange(10)}%"
    if kind == 5:
        return f"{rng.randint(1, 31):02d}/{rng.randint(1, 12):02d}" + (f"/{rng.randrange(100):02d}" * rng.randrange(2))
    if kind == 6:
        return f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    return f"{rng.randrange(1, 10)},{rng.randrange(1000):03d}"


def _plate(rng: random.Random) -> str:
    """A code such as a number plate: ``KX-482``, ``B 1207`` or ``7TR 55``."""
    letters = "".join(rng.choices(UPPER, k=rng.randint(1, 3)))
    digits = "".join(rng.choices(DIGITS, k=rng.randint(2, 4)))
    return letters + rng.choice(("-", " ", "")) + digits


def _kept(rng: random.Random, split: str, make: Callable[[random.Random], str]) -> str:
    """Draws until the text belongs to the split."""
    while True:
        text = make(rng)
        if is_test(text) == (split == "test"):
            return text


def _blend(rng: random.Random) -> str:
    """The beginning of one training word and the end of another, 3 to 8 letters: reads like a word, seldom is one."""
    while True:
        first, second = rng.choice(words("train")), rng.choice(words("train"))
        text = first[: rng.randint(1, len(first))] + second[rng.randrange(len(second)) :]
        if 3 <= len(text) <= 8:
            return text


def word(rng: random.Random, split: str) -> str:
    """A word in lower case, Title case or capitals: common in the test split, in training half of them are blends.

    Without them a small model learns the 1,755 training words by heart and takes unseen ones for the nearest of them.
    """
    if split == "train" and rng.random() < 0.5:
        text = _kept(rng, split, _blend)
    else:
        choices = words(split)
        text = choices[int(rng.random() * len(choices))]
    case = rng.random()
    return text if case < 0.4 else text.upper() if case < 0.7 else text.capitalize()


def random_text(rng: random.Random, split: str, length: int) -> str:
    """A random string of the length; three characters or more in the test split."""
    length = max(3, length) if split == "test" else length
    return _kept(rng, split, lambda r: _random_text(r, length))


def number(rng: random.Random, split: str) -> str:
    """A number as signs and tickets show it, at most 8 characters."""
    return _kept(rng, split, _number)


def plate(rng: random.Random, split: str) -> str:
    """A plate-like code of at most 8 characters."""
    return _kept(rng, split, _plate)
