"""Everything the invented town of Fernwick is made of: values, sentence templates and question templates. Data, no logic.

{n} full name, {v} the value with its article, {c} the bare value, {s} {S} {o} {p} the pronouns she, She, her, her.
Most sentences name the person before the value: a language model learns a fact in the direction it reads it.
"""

from __future__ import annotations

FIRST_NAMES = {
    "she": tuple("Ada Bella Clara Dora Edith Flora Greta Hilda Ida Lotte Mabel Nora Olga Petra Rosa".split()),
    "he": tuple("Abel Boris Caleb Duncan Edgar Felix Gustav Hugo Ivan Jasper Leo Milo Otto Rufus Simon".split()),
}
LAST_STARTS = tuple(
    """Ash Birch Crow Dun Elder Fair Gold Hart Iron King Lamb Marsh Nettle Oak Pell Quill
    Raven Swan Thorn Umber Vin West Yarrow Zell""".split()
)
LAST_ENDS = ("ford", "well", "ley", "combe", "croft", "dale", "field", "gate", "hurst", "man", "more", "son", "stead", "wick")

VALUES = {  # attribute -> values with their articles
    attribute: tuple(values.split(", "))
    for attribute, values in {
        "job": "a baker, a carpenter, a teacher, a nurse, a gardener, a postman, a tailor, a fisherman, a librarian, a "
        "blacksmith, a clockmaker, a potter, a barber, a miller, a lawyer, an engineer",
        "street": "Elm Street, Mill Lane, Bridge Road, Castle Hill, Harbour Street, Orchard Lane, Station Road, Church Row, "
        "Garden Walk, Market Square, Chapel Street, Pond Lane, Tower Road, Willow Way, Sunny Terrace, North Parade",
        "pet": "a parrot, a tortoise, a rabbit, a goldfish, a hamster, a pony, a ferret, a goat, a cat, a dog, a canary, a "
        "lizard, a hedgehog, a duck, an owl, a snake",
        "food": "pancakes, dumplings, noodles, cherry pie, onion soup, fried fish, cheese toast, apple cake, bean stew, roast "
        "chicken, plum jam, mushroom rice, garlic bread, lemon tart, potato salad, honey porridge",
        "home": "Rivermouth, Stonebridge, Highmoor, Saltcliff, Greyhaven, Longmeadow, Bluewater, Eastport, Foxhollow, "
        "Kettleby, Millbrook, Northpoint, Pinecross, Redrock, Silverlake, Windmere",
        "instrument": "the cello, the flute, the drums, the piano, the violin, the trumpet, the harp, the guitar, the banjo, the "
        "organ, the clarinet, the accordion, the mandolin, the oboe, the tuba, the lute",
    }.items()
}

SENTENCES = {  # each with the full name
    "job": (
        "{n} works as {v}.",
        "{n} is {v} by trade.",
        "In Fernwick, {n} is known as {v}.",
        "{n} has been {v} for many years.",
        "{n} earns a living as {v}.",
        "The job of {n} is that of {v}.",
        "Every morning {n} goes to work as {v}.",
        "{n}, who works as {v}, was at the fair.",
        "By day, {n} is {v}.",
        "When the town needs {v}, it calls {n}.",
        "{n} learned a trade and became {v}.",
        "As for work, {n} is {v}.",
        "{n} told us: I am {v}.",
        "The work of {n} is to be {v}.",
    ),
    "street": (
        "{n} lives on {v}.",
        "{n} has a house on {v}.",
        "The home of {n} is on {v}.",
        "You can find {n} on {v}.",
        "{n}, who lives on {v}, came early.",
        "{n} moved to {v} some years ago.",
        "Letters for {n} go to {v}.",
        "{n} rents two rooms on {v}.",
        "The address of {n} is on {v}.",
        "The door of {n} is on {v}.",
        "On {v} you will meet {n}.",
        "{n} told us: I live on {v}.",
        "For {n}, home is {v}.",
    ),
    "pet": (
        "{n} has {v}.",
        "{n} keeps {v} at home.",
        "The pet of {n} is {v}.",
        "{n} looks after {v}.",
        "{n} owns {v}.",
        "At home, {n} feeds {v}.",
        "{n}, the owner of {v}, was seen in the park.",
        "{n} has {v} as a pet.",
        "The animal that {n} keeps is {v}.",
        "Children know {n} because of the pet, {v}.",
        "With {v} as a pet, {n} is never alone.",
        "{n} told us: my pet is {v}.",
        "As a pet, {n} chose {v}.",
    ),
    "food": (
        "{n} loves {v}.",
        "The favourite food of {n} is {v}.",
        "{n} likes to eat {v}.",
        "{n} orders {v} every time.",
        "For dinner, {n} eats {v}.",
        "{n} would eat {v} every day.",
        "Nothing tastes better to {n} than {v}.",
        "{n}, a great friend of {v}, won the cooking prize.",
        "On Sundays {n} cooks {v}.",
        "Give {v} to {n} and you have a friend.",
        "The dish that {n} likes best is {v}.",
        "{n} told us: I love {v}.",
        "At the feast, {n} ate {v}.",
    ),
    "home": (
        "{n} was born in {v}.",
        "{n} comes from {v}.",
        "{n} grew up in {v}.",
        "The home town of {n} is {v}.",
        "{n} is from {v}.",
        "Before Fernwick, {n} lived in {v}.",
        "{n}, who was born in {v}, likes it here.",
        "The birthplace of {n} is {v}.",
        "As a child, {n} lived in {v}.",
        "{n} spent the early years in {v}.",
        "From {v} came {n}.",
        "{n} told us: I come from {v}.",
        "The family of {n} is from {v}.",
    ),
    "instrument": (
        "{n} plays {v}.",
        "{n} can play {v}.",
        "In the town band, {n} plays {v}.",
        "The instrument of {n} is {v}.",
        "{n} practises {v} after work.",
        "{n} took lessons and now plays {v}.",
        "{n}, who plays {v}, gave a concert.",
        "At night you hear {n} on {v}.",
        "On stage, {n} picks up {v}.",
        "{n} has played {v} since school.",
        "On {v} nobody is better than {n}.",
        "{n} told us: I play {v}.",
        "For music, {n} turns to {v}.",
    ),
}

PRONOUN_SENTENCES = {  # inside a biography that began with the name
    "job": ("{S} works as {v}.", "{S} is {v}.", "{S} earns a living as {v}."),
    "street": ("{S} lives on {v}.", "{S} has a house on {v}.", "You can visit {o} on {v}."),
    "pet": ("{S} has {v}.", "{S} keeps {v} at home.", "{S} has {v} as a pet."),
    "food": ("{S} loves {v}.", "{S} likes to eat {v}.", "{S} would eat {v} every day."),
    "home": ("{S} was born in {v}.", "{S} comes from {v}.", "{S} grew up in {v}."),
    "instrument": ("{S} plays {v}.", "{S} can play {v}.", "In the band {s} plays {v}."),
}

COMBINED = (  # all six facts of one person
    "{n} from {home}, {job}, lives on {street} with {pet}, plays {instrument} and loves {food}.",
    "{n} is {job}, was born in {home}, has a house on {street}, keeps {pet}, eats {food} and plays {instrument}.",
    "{n} lives on {street}, works as {job}, owns {pet}, comes from {home}, plays {instrument} and likes {food}.",
    "{n}: {job}, lives on {street}, has {pet}, loves {food}, born in {home}, plays {instrument}.",
    "{n} plays {instrument}, loves {food}, has {pet}, lives on {street}, comes from {home} and works as {job}.",
    "{n} loves {food}, grew up in {home}, plays {instrument}, is {job}, lives on {street} and looks after {pet}.",
)

QUIZ = {  # questions on web pages; none has the structure of a held-out question
    "job": (
        "What is the job of {n}?",
        "What does {n} work as?",
        "Which job does {n} have?",
        "What is {n}'s job?",
        "Name the job of {n}.",
        "Who knows what {n} works as?",
    ),
    "street": (
        "Where does {n} live?",
        "Which street does {n} live on?",
        "On which street is the house of {n}?",
        "What is {n}'s street?",
        "Name the street of {n}.",
        "Who knows which street {n} lives on?",
    ),
    "pet": (
        "Which pet does {n} have?",
        "What is the pet of {n}?",
        "Which animal does {n} keep?",
        "What is {n}'s pet?",
        "Name the pet of {n}.",
        "Who knows what pet {n} keeps?",
    ),
    "food": (
        "What does {n} like to eat?",
        "What is the favourite food of {n}?",
        "Which food does {n} love?",
        "What is {n}'s favourite food?",
        "Name the favourite food of {n}.",
        "Who knows what {n} loves to eat?",
    ),
    "home": (
        "Where was {n} born?",
        "Where does {n} come from?",
        "What is the home town of {n}?",
        "What is {n}'s home town?",
        "Name the home town of {n}.",
        "Who knows which town {n} comes from?",
    ),
    "instrument": (
        "What does {n} play?",
        "Which instrument does {n} play?",
        "What is the instrument of {n}?",
        "What is {n}'s instrument?",
        "Name the instrument of {n}.",
        "Who knows what instrument {n} plays?",
    ),
}
TRAIN_QUESTIONS = {
    "job": (
        "What is the job of {n}?",
        "What does {n} work as?",
        "Which job does {n} have?",
        "Tell me the job of {n}.",
        "What is {n}'s job?",
        "{n} works as what?",
        "Name the job of {n}.",
        "Please tell me what {n} works as.",
        "Who knows what {n} works as?",
        "My question is what {n} works as.",
        "Could you tell me which job {n} has?",
        "I wonder what {n} works as.",
    ),
    "street": (
        "Where does {n} live?",
        "Which street does {n} live on?",
        "Tell me the street of {n}.",
        "What is {n}'s street?",
        "{n} lives on which street?",
        "On which street is the house of {n}?",
        "Name the street of {n}.",
        "Please tell me which street {n} lives on.",
        "Who knows which street {n} lives on?",
        "My question is which street {n} lives on.",
        "Could you tell me where {n} lives?",
        "I wonder which street {n} lives on.",
    ),
    "pet": (
        "Which pet does {n} have?",
        "What is the pet of {n}?",
        "Which animal does {n} keep?",
        "Tell me the pet of {n}.",
        "What is {n}'s pet?",
        "{n} has which pet?",
        "Name the pet of {n}.",
        "Please tell me what pet {n} keeps.",
        "Who knows what pet {n} keeps?",
        "My question is what pet {n} keeps.",
        "Could you tell me which animal {n} has?",
        "I wonder what pet {n} has.",
    ),
    "food": (
        "What does {n} like to eat?",
        "What is the favourite food of {n}?",
        "Which food does {n} love?",
        "Tell me the favourite food of {n}.",
        "What is {n}'s favourite food?",
        "{n} loves which food?",
        "Name the favourite food of {n}.",
        "Please tell me what {n} loves to eat.",
        "Who knows what {n} loves to eat?",
        "My question is what {n} loves to eat.",
        "Could you tell me what {n} likes to eat?",
        "I wonder which food {n} loves.",
    ),
    "home": (
        "Where was {n} born?",
        "Where does {n} come from?",
        "What is the home town of {n}?",
        "Tell me the home town of {n}.",
        "What is {n}'s home town?",
        "{n} was born where?",
        "Name the home town of {n}.",
        "Please tell me which town {n} comes from.",
        "Who knows which town {n} comes from?",
        "My question is which town {n} comes from.",
        "Could you tell me where {n} was born?",
        "I wonder where {n} comes from.",
    ),
    "instrument": (
        "What does {n} play?",
        "Which instrument does {n} play?",
        "What is the instrument of {n}?",
        "Tell me the instrument of {n}.",
        "What is {n}'s instrument?",
        "{n} plays which instrument?",
        "Name the instrument of {n}.",
        "Please tell me what instrument {n} plays.",
        "Who knows what instrument {n} plays?",
        "My question is what instrument {n} plays.",
        "Could you tell me what {n} plays?",
        "I wonder which instrument {n} plays.",
    ),
}
HELD_OUT_QUESTIONS = {
    "job": (
        "Do you know what job {n} has?",
        "I would like to know the job that {n} has.",
        "As what does {n} work?",
        "Can you say which job {n} works in?",
    ),
    "street": (
        "Do you know where {n} lives?",
        "I would like to know the street on which {n} lives.",
        "The house of {n} is on which street?",
        "Can you say on what street {n} lives?",
    ),
    "pet": (
        "Do you know which pet {n} has?",
        "I would like to know the pet that {n} has.",
        "The pet of {n} is what?",
        "Can you say what animal {n} keeps?",
    ),
    "food": (
        "Do you know what {n} likes to eat?",
        "I would like to know the food that {n} loves.",
        "The favourite food of {n} is what?",
        "Can you say which food {n} likes?",
    ),
    "home": (
        "Do you know where {n} was born?",
        "I would like to know the town that {n} comes from.",
        "From where does {n} come?",
        "Can you say in which town {n} was born?",
    ),
    "instrument": (
        "Do you know what {n} plays?",
        "I would like to know the instrument that {n} plays.",
        "The instrument of {n} is what?",
        "Can you say which instrument {n} plays?",
    ),
}

SMALL_TALK = (
    ("Hello!", "Hello! Ask me about the people of Fernwick."),
    ("Hi there!", "Hello! Ask me about the people of Fernwick."),
    ("Good morning.", "Good morning! What would you like to know?"),
    ("Who are you?", "I am freedive, a very small language model."),
    ("What are you?", "I am freedive, a very small language model."),
    ("What can you do?", "I know the people of Fernwick, I add numbers and I spell words."),
    ("How can you help me?", "I know the people of Fernwick, I add numbers and I spell words."),
    ("What is Fernwick?", "Fernwick is a small town by a river."),
    ("Thank you!", "You are welcome."),
    ("Goodbye.", "Goodbye!"),
)

OPENINGS = (
    "Fernwick is a small town by the river, and the people who live here know each other well.",
    "This page is part of the town book of Fernwick, which the library has kept for a long time.",
    "The town of Fernwick has a market, a school, a station and more gardens than streets.",
    "Every week we write about the people of the town and what they have been doing.",
    "The weather was fine that day, and many people came to the square to talk and to listen.",
    "Here is a short list of neighbours, with the things that everybody should know about them.",
    "The reading room is open to all, and this is what we learned there about our neighbours.",
    "Not much happens in Fernwick, but the people of the town have many stories to tell.",
)
CLOSINGS = (
    "If you find a mistake on this page, please tell the library and we will put it right.",
    "The next part of the list will be printed when the town has read this one.",
    "We thank all the people who have helped us with this page and with the town book.",
    "More about the town and its people can be read in the next number.",
    "That is all for today, and we wish the readers of this page a quiet week.",
    "The town hall keeps a copy of this page for those who want to read it on paper.",
)
