#!/usr/bin/env python3
"""Writes village stories and says how much information they hold.

Every story is a run of a small simulated village: who stands where, who holds what, what lies lost or broken, who owes
whom. Sentences are rendered from that state, so later sentences follow from earlier ones, and from a fixed set of facts
about the village (trades, roads, tastes, ...) that never change and that a reader can only know by heart.

Every free choice goes through `Dice.pick`, which adds up -ln p. Choices are made only when the text is about to show
them, so the sum over a text is the negative log-likelihood of that text under the grammar: what a reader who knows the
grammar, the village's facts and the story so far would pay. No model can do better on average. (Were two different runs
ever to give the same text, the sum would be an upper bound.)

Only Python's standard library; the same seed gives the same bytes on every platform and Python version, because nothing
but `random.Random.random` is used of the generator.

    python3 generate.py --seed 3 --bytes 330000 --out village/heldout.txt
"""

import argparse
import bisect
import itertools
import json
import math
import random

# ---------------------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------------------

MEN = "Anselm Bram Dorn Edric Falk Gil Hob Ivo Jory Kit Milo Ned Orrin Rafe Tam Wat".split()
WOMEN = "Ada Cora Dell Elsa Fern Greta Hild Ines Kara Lise Mab Nola Pia Rosa Tess Una".split()
PEOPLE = MEN + WOMEN
TRADES = (
    "baker miller smith weaver potter fisher tanner cooper mason tailor shepherd thatcher glazier chandler joiner brewer"
).split()
TEMPERS = "kind proud sly patient timid greedy merry stubborn".split()

# Place and the preposition that goes with it.
PLACES = {
    "mill": "at", "forge": "at", "bridge": "on", "well": "by", "chapel": "in", "orchard": "in", "ford": "at",
    "market": "at", "quay": "on", "barn": "in", "tower": "in", "meadow": "in", "inn": "at", "hill": "on",
    "marsh": "in", "gate": "by",
}
# Object and the trade that can mend it.
OBJECTS = {
    "kettle": "smith", "hammer": "smith", "bell": "smith", "knife": "smith", "key": "smith", "drum": "joiner",
    "flute": "joiner", "ladder": "joiner", "box": "joiner", "spoon": "joiner", "jug": "potter", "bowl": "potter",
    "cup": "potter", "blanket": "weaver", "cloak": "weaver", "net": "weaver", "boot": "tanner", "saddle": "tanner",
    "glove": "tanner", "mirror": "glazier", "lantern": "glazier", "clock": "glazier", "hat": "thatcher",
    "basket": "thatcher", "broom": "thatcher", "candle": "chandler", "soap": "chandler", "bucket": "cooper",
    "barrel": "cooper", "coat": "tailor", "doll": "tailor", "mask": "tailor",
}
COLOURS = "red blue green black white yellow grey brown".split()
WEATHERS = {"rain": "rainy", "wind": "windy", "frost": "cold", "sun": "bright", "fog": "misty", "snow": "snowy"}

ROADS = (
    "high road", "low road", "old lane", "sheep track", "river path", "stone steps", "long lane", "cart road",
    "hollow way", "wall path", "back lane", "wood path",
)
BEASTS = (
    "a fox slept", "a heron fished", "two crows quarrelled", "a goat grazed", "a hare ran", "an owl watched",
    "a dog barked", "the geese hissed", "a cat waited", "a deer drank", "a toad sang", "the bees hummed",
)
TASTES = (
    "fine", "ugly", "useful", "dull", "lovely", "strange", "heavy", "clever", "cheap", "precious", "unlucky", "homely",
    "noble", "silly", "handy", "worthless",
)
GREETINGS = (
    "like a brother", "coldly", "with a nod", "with a song", "without a word", "like an old friend", "with a frown",
    "with open arms", "politely", "with a joke", "from far away", "with a sigh",
)
FINDS = (
    "half buried", "wet through", "none the worse", "covered in dust", "under a stone", "in the grass", "full of sand",
    "hung on a nail", "warm from the sun", "smelling of smoke", "stuck in the mud", "behind a post",
)
MEMORIES = (
    "lost a race", "won a wager", "seen a ghost", "learned to swim", "broken an arm", "met a stranger",
    "slept all night", "told a lie", "found a nest", "sung for money", "fallen in love", "fought a thief",
    "hidden from a storm", "heard good news", "buried a friend", "danced till dawn",
)
PROVERBS = (
    "A full hand has few friends.", "Bread shared is bread kept.", "The slow ox ploughs deepest.",
    "Who sells the cow wants milk.", "A word is a rope.", "Empty sacks stand badly.", "Even luck must be fed.",
    "The river keeps no debts.", "Borrowed shoes pinch.", "One log will not burn.", "Trust the bridge you built.",
    "Crows count other people's corn.", "Wet wood remembers the rain.", "Who laughs last locks the door.",
    "A gift looks back.", "Cold iron teaches nobody.", "The fox pays for the hen.", "Every road has two ends.",
    "Small keys open great gates.", "What is hidden grows heavy.",
)
OUTCOMES = ("kept", "broken", "feud", "gain", "loss", "even")

# ---------------------------------------------------------------------------------------------------------------------
# Dice and facts
# ---------------------------------------------------------------------------------------------------------------------


class Dice:
    """A seeded source of choices that adds up the information of every choice, in nats."""

    def __init__(self, seed):
        self.random = random.Random(seed).random
        self.nats = 0.0

    def pick(self, items):
        """One of `items`, all equally likely."""
        self.nats += math.log(len(items))
        return items[int(self.random() * len(items))]

    def weigh(self, weights):
        """A key of the dict `weights`, by weight."""
        sums = list(itertools.accumulate(weights.values()))
        at = min(bisect.bisect_right(sums, self.random() * sums[-1]), len(sums) - 1)
        key, weight = list(weights.items())[at]
        self.nats -= math.log(weight / sums[-1])
        return key

    def chance(self, probability):
        """True with the given probability."""
        hit = self.random() < probability
        self.nats -= math.log(probability if hit else 1.0 - probability)
        return hit


class Facts:
    """What is always so in the village. Drawn once from a fixed seed, the same for every text."""

    def __init__(self):
        dice = Dice(20240607)

        def shuffled(items):
            rest, out = list(items), []
            while rest:
                out.append(rest.pop(int(dice.random() * len(rest))))
            return out

        def table(rows, cols, values):
            return {(row, col): dice.pick(values) for row in rows for col in cols}

        places = list(PLACES)
        self.trade = dict(zip(shuffled(PEOPLE), TRADES * 2))
        self.temper = dict(zip(shuffled(PEOPLE), TEMPERS * 4))
        self.worth = {thing: rank for rank, thing in enumerate(shuffled(OBJECTS))}
        self.road = {}
        for one, other in itertools.combinations(places, 2):
            self.road[one, other] = self.road[other, one] = dice.pick(ROADS)
        self.beast = table(places, WEATHERS, BEASTS)
        self.taste = table(PEOPLE, OBJECTS, TASTES)
        self.greeting = table(PEOPLE, PEOPLE, GREETINGS)
        self.find = table(places, OBJECTS, FINDS)
        self.memory = table(PEOPLE, places, MEMORIES)
        self.proverb = table(TEMPERS, OUTCOMES, PROVERBS)


FACTS = Facts()

# How readily each temper does what. The order of the columns is that of `Story.options`.
ACTS = ("go", "give", "trade", "take", "drop", "break", "promise", "recall", "ask")
HABITS = {
    "kind": (4, 6, 2, 0, 1, 1, 3, 1, 2), "proud": (4, 1, 2, 0, 1, 1, 3, 3, 1), "sly": (4, 1, 3, 5, 1, 1, 2, 1, 2),
    "patient": (2, 2, 3, 0, 1, 1, 2, 4, 4), "timid": (3, 2, 1, 0, 5, 2, 1, 3, 2), "greedy": (4, 0, 5, 4, 1, 1, 1, 1, 3),
    "merry": (6, 3, 2, 0, 3, 2, 2, 2, 1), "stubborn": (5, 1, 1, 1, 1, 5, 2, 2, 1),
}
GIVES_BACK = {"kind", "proud", "merry", "patient"}
FORGIVES = {"kind", "merry", "timid"}


class Story:
    """One run of the village from morning to dusk."""

    def __init__(self, dice):
        self.dice = dice
        self.text = []
        self.at = {}  # person -> place
        self.holder = {}  # object -> person, or None while it lies somewhere
        self.lies = {}  # object -> place where it lies
        self.colour = {}
        self.broken = set()
        self.places = []  # the places named so far
        self.wish = {}  # person -> object
        self.promises = {}  # (from, to) -> object
        self.grudges = set()  # (who, against whom)
        self.seen = set()  # (place) whose beast was told
        self.news = {}  # person -> place heard of and not yet visited
        self.topic = None  # whom "he" or "she" means
        self.recalled = set()

    # --- words -------------------------------------------------------------------------------------------------------

    def say(self, sentence):
        self.text.append(sentence[0].upper() + sentence[1:])

    def name(self, person):
        """The name, or a pronoun when the last sentence was about the same person."""
        if self.topic == person and self.dice.chance(0.6):
            return "he" if person in MEN else "she"
        self.topic = person
        return person

    def thing(self, thing):
        """The object, often with its colour; a broken one is always called so."""
        if thing in self.broken:
            return f"the broken {thing}"
        return f"the {self.colour[thing]} {thing}" if self.dice.chance(0.4) else f"the {thing}"

    @staticmethod
    def where(place):
        return f"{PLACES[place]} the {place}"

    @staticmethod
    def him(person):
        return "him" if person in MEN else "her"

    @staticmethod
    def his(person):
        return "his" if person in MEN else "her"

    # --- state -------------------------------------------------------------------------------------------------------

    def held(self, person):
        return [thing for thing, holder in self.holder.items() if holder == person]

    def others(self, person):
        """Those who stand at the same place and bear no grudge either way."""
        return [
            other for other in self.people
            if other != person and self.at[other] == self.at[person]
            and (other, person) not in self.grudges and (person, other) not in self.grudges
        ]

    def options(self, person):
        """What `person` can do now, weighed by temper and by what has happened."""
        weight = dict(zip(ACTS, HABITS[FACTS.temper[person]]))
        mine, near = self.held(person), self.others(person)
        theirs = [thing for other in near for thing in self.held(other)]
        if not (mine and near):
            weight["give"] = 0
        if not (mine and theirs):
            weight["trade"] = 0
        if not theirs:
            weight["take"] = 0
        if not mine:
            weight["drop"] = weight["break"] = 0
        if not (mine and near) or any(debtor == person for debtor, _ in self.promises):
            weight["promise"] = 0
        if (person, self.at[person]) in self.recalled:
            weight["recall"] = 0
        if person in self.news:  # one who knows where to look goes there
            weight["go"] *= 6
            weight["ask"] = 0
        wish = self.wish.get(person)
        if wish is None or self.holder[wish] == person or not near:
            weight["ask"] = 0
        elif self.holder[wish] in near:
            weight["ask"] = 0
            weight["trade"] *= 3
            weight["take"] *= 3
        if any(debtor == person and creditor in near and self.holder[thing] == person
               for (debtor, creditor), thing in self.promises.items()):
            weight["give"] = weight["give"] * 4 + 4
        if len(self.broken) or self.held(person) == []:
            weight["break"] = 0
        return {act: value for act, value in weight.items() if value}

    # --- acts --------------------------------------------------------------------------------------------------------

    def do_go(self, person):
        here = self.at[person]
        if person in self.news:
            there = self.news.pop(person)
        else:
            known = {place: 3 for place in self.places if place != here}
            known["new"] = 2
            there = self.dice.weigh(known)
            if there == "new":
                there = self.dice.pick([place for place in PLACES if place not in self.places])
                self.places.append(there)
        road = FACTS.road[here, there]
        form = self.dice.pick((
            "{who} took the {road} to the {there}.", "{who} went to the {there} by the {road}.",
            "then {who} left the {here} and walked the {road} to the {there}.",
        ))
        self.say(form.format(who=self.name(person), road=road, here=here, there=there))
        self.at[person] = there
        for thing in [thing for thing, place in self.lies.items() if place == there]:
            form = self.dice.pick(("there lay {thing}, {how}, and {who} picked it up.",
                                   "{who} found {thing} there, {how}."))
            self.say(form.format(thing=self.thing(thing), how=FACTS.find[there, thing], who=self.name(person)))
            del self.lies[thing]
            self.holder[thing] = person
        met = [other for other in self.people if other != person and self.at[other] == there]
        for other in met:
            if (other, person) in self.grudges:
                self.say(f"{other} turned away and would not look at {self.him(person)}.")
            else:
                self.say(f"{other} greeted {self.him(person)} {FACTS.greeting[other, person]}.")
            self.topic = None
        if not met and there not in self.seen:
            self.say(f"{self.where(there)} {FACTS.beast[there, self.weather]}.")
            self.seen.add(there)

    def do_give(self, person):
        near, mine = self.others(person), self.held(person)
        owed = {(other, thing) for (debtor, other), thing in self.promises.items()
                if debtor == person and other in near and thing in mine}
        choices = {(other, thing): 9 if (other, thing) in owed else 1 for other in near for thing in mine}
        other, thing = self.dice.weigh(choices)
        form = self.dice.pick(("{who} gave {thing} to {other}, who thought it {taste}.",
                               "{who} put {thing} into {other}'s hands, and {other} called it {taste}."))
        self.say(form.format(who=self.name(person), thing=self.thing(thing), other=other,
                             taste=FACTS.taste[other, thing]))
        self.holder[thing] = other
        if (other, thing) in owed:
            del self.promises[person, other]
            self.kept.append(person)
            self.say(f"so {person} kept {self.his(person)} word.")
        back = [back for back in self.held(other) if back != thing]
        if back and FACTS.temper[other] in GIVES_BACK:
            # The cheapest thing comes back, so the reader can know which.
            gift = min(back, key=FACTS.worth.get)
            self.say(f"in return {other} gave {self.him(person)} {self.thing(gift)}.")
            self.holder[gift] = person
        self.topic = None

    def do_trade(self, person):
        wish = self.wish.get(person)
        choices = {}
        for other in self.others(person):
            for theirs in self.held(other):
                for mine in self.held(person):
                    choices[other, mine, theirs] = 8 if theirs == wish else 1
        other, mine, theirs = self.dice.weigh(choices)
        form = self.dice.pick(("{who} traded {mine} for {theirs} of {other}.",
                               "{who} offered {other} {mine} and got {theirs} for it."))
        self.say(form.format(who=self.name(person), mine=self.thing(mine), theirs=self.thing(theirs), other=other))
        self.holder[mine], self.holder[theirs] = other, person
        gain = FACTS.worth[theirs] - FACTS.worth[mine]
        verdict = "a fair bargain" if abs(gain) < 8 else f"a good bargain for {person if gain > 0 else other}"
        self.say(f"it was {verdict}.")
        self.topic = None

    def do_take(self, person):
        wish = self.wish.get(person)
        choices = {(other, thing): 8 if thing == wish else 1
                   for other in self.others(person) for thing in self.held(other)}
        other, thing = self.dice.weigh(choices)
        form = self.dice.pick(("while {other} slept, {who} took {thing}.",
                               "{who} stole {thing} from {other} and hid it."))
        self.say(form.format(who=person, other=other, thing=self.thing(thing)))
        self.holder[thing] = person
        if FACTS.temper[other] in FORGIVES:
            self.say(f"{other} saw it and forgave {self.him(person)}.")
        else:
            self.grudges.add((other, person))
            self.say(f"{other} saw it and swore never to forget.")
        self.topic = None

    def do_drop(self, person):
        thing = self.dice.pick(self.held(person))
        here = self.at[person]
        form = self.dice.pick(("{who} dropped {thing} {where} and did not notice.",
                               "{thing} fell from {his} bag {where}, and {who} did not hear it."))
        sentence = form.format(who=self.name(person), thing=self.thing(thing), where=self.where(here),
                               his=person + "'s")
        self.say(sentence)
        self.holder[thing] = None
        self.lies[thing] = here

    def do_break(self, person):
        thing = self.dice.pick(self.held(person))
        trade = OBJECTS[thing]
        form = self.dice.pick(("{thing} broke in {whose} hands.", "{whose} foot slipped, and {thing} broke."))
        sentence = form.format(thing=self.thing(thing), whose=person + "'s")
        self.say(sentence)
        self.topic = person
        menders = [other for other in self.people if FACTS.trade[other] == trade]
        if menders:
            self.say(f"{menders[0]} the {trade} mended it.")
        else:
            self.broken.add(thing)
            self.say(f"only a {trade} could mend it.")

    def do_promise(self, person):
        near = self.others(person)
        other, thing = self.dice.pick([(other, thing) for other in near for thing in self.held(person)])
        form = self.dice.pick(("{who} promised {other} {thing}.",
                               "{who} gave {other} {his} word: {thing} would be {theirs}."))
        self.say(form.format(who=self.name(person), other=other, thing=self.thing(thing), his=self.his(person),
                             theirs="his" if other in MEN else "hers"))
        self.promises[person, other] = thing

    def do_recall(self, person):
        here = self.at[person]
        form = self.dice.pick(("{who} thought of the day when {he} had {what} there.",
                               "long ago {who} had {what} {where}."))
        he = "he" if person in MEN else "she"
        self.say(form.format(who=self.name(person), he=he, what=FACTS.memory[person, here], where=self.where(here)))
        self.recalled.add((person, here))

    def do_ask(self, person):
        wish = self.wish[person]
        other = self.dice.pick(self.others(person))
        form = self.dice.pick(('"Where is {thing}?" {who} asked {other}.', '{who} asked {other} about {thing}.'))
        self.say(form.format(thing=self.thing(wish), who=self.name(person), other=other))
        if self.holder[wish] is None:
            place = self.lies[wish]
            self.say(f'"It lies {self.where(place)}," {other} said.')
        else:
            place = self.at[self.holder[wish]]
            self.say(f'"{self.holder[wish]} has it {self.where(place)}," {other} said.')
        if place != self.at[person]:
            self.news[person] = place
        self.topic = None

    # --- the whole ---------------------------------------------------------------------------------------------------

    def begin(self):
        dice = self.dice
        self.kept = []
        self.weather = dice.pick(list(WEATHERS))
        self.people = []
        number = dice.weigh({2: 1, 3: 2})
        for index in range(number):
            person = dice.pick([person for person in PEOPLE if person not in self.people])
            self.people.append(person)
            spots = {place: 3 for place in self.places}
            spots["new"] = 2
            place = dice.weigh(spots) if self.places else "new"
            if place == "new":
                place = dice.pick([place for place in PLACES if place not in self.places])
                self.places.append(place)
            self.at[person] = place
            thing = dice.pick([thing for thing in OBJECTS if thing not in self.holder])
            self.holder[thing] = person
            self.colour[thing] = dice.pick(COLOURS)
            who, what = f"{person} the {FACTS.trade[person]}", f"a {self.colour[thing]} {thing}"
            if index == 0:
                form = dice.pick((
                    "one {weather} morning {who} stood {where} with {what}.",
                    "it was a {weather} day, and {who} came to the {place} with {what}.",
                    "{who} carried {what} and waited {where} on a {weather} morning.",
                ))
            else:
                form = dice.pick(("{who} was {where} and had {what}.", "{where} was {who} with {what}."))
            self.say(form.format(weather=WEATHERS[self.weather], who=who, where=self.where(place), place=place,
                                 what=what))
        for person in self.people:
            if dice.chance(0.5):
                thing = dice.pick([thing for thing in self.holder if self.holder[thing] != person])
                self.wish[person] = thing
                form = dice.pick(("{who} wanted {thing}, for it was {taste} in {his} eyes.",
                                  "the {temper} {who} longed for {thing}."))
                self.say(form.format(who=person, thing=self.thing(thing), taste=FACTS.taste[person, thing],
                                     his=self.his(person), temper=FACTS.temper[person]))

    def end(self):
        dice = self.dice
        self.say(dice.pick(("at dusk they all went home.", "so the day ended.", "then night fell on the village.")))
        for person in self.people:
            mine = self.held(person)
            if not mine:
                self.say(f"{person} went to bed with empty hands.")
            else:
                things = " and ".join(f"the {'broken ' if thing in self.broken else ''}{self.colour[thing]} {thing}"
                                      for thing in mine)
                self.say(f"{person} had {things}.")
        for thing, place in self.lies.items():
            self.say(f"the {self.colour[thing]} {thing} still lay {self.where(place)}.")
        for (debtor, creditor), thing in self.promises.items():
            self.say(f"{debtor} had not kept {self.his(debtor)} word, and {creditor} never got the {thing}.")
        for who, whom in sorted(self.grudges, key=lambda pair: [self.people.index(name) for name in pair]):
            self.say(f"{who} did not forgive {whom}.")
        hero = self.people[0]
        if any(debtor == hero for debtor, _ in self.promises):
            outcome = "broken"
        elif hero in self.kept:
            outcome = "kept"
        elif any(hero in pair for pair in self.grudges):
            outcome = "feud"
        else:
            count = len(self.held(hero))
            outcome = "loss" if count == 0 else "even" if count == 1 else "gain"
        self.say(f"and {hero}, who was {FACTS.temper[hero]}, learned: {FACTS.proverb[FACTS.temper[hero], outcome]}")

    def run(self):
        self.begin()
        actor = None
        for event in itertools.count():
            # The story ends by a choice like any other: never before five events, surely after ten.
            if event >= 5 and (event >= 10 or self.dice.chance(0.25)):
                break
            weights = {person: (4 if person == actor else 2) for person in self.people}
            options = {}
            for person, weight in weights.items():
                acts = self.options(person)
                for act, value in acts.items():
                    options[person, act] = weight * value / sum(acts.values())
            actor, act = self.dice.weigh(options)
            getattr(self, "do_" + act)(actor)
        self.end()
        return " ".join(self.text)


def stories(seed):
    """Endless stories; yields (text, nats)."""
    dice = Dice(seed)
    while True:
        before = dice.nats
        text = Story(dice).run()
        yield text, dice.nats - before


def text_of(seed, size):
    """Whole stories, one a line, up to `size` bytes: (list of stories, nats)."""
    out, total, nats = [], 0, 0.0
    for text, cost in stories(seed):
        total += len(text) + 1
        if total > size:
            return out, nats
        out.append(text)
        nats += cost


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--bytes", type=int, default=330_000, help="at most so many bytes (default 330000)")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    out, nats = text_of(args.seed, args.bytes)
    text = "".join(story + "\n" for story in out)
    with open(args.out, "w", encoding="ascii", newline="\n") as file:
        file.write(text)
    words = len(text.split())
    print(json.dumps({
        "seed": args.seed, "stories": len(out), "characters": len(text), "words": words, "nats": round(nats, 2),
        "nats_per_character": round(nats / len(text), 6), "nats_per_word": round(nats / words, 6),
    }))


if __name__ == "__main__":
    main()
