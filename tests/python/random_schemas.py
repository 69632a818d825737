"""Random JSON schemas whose values stay short, so that answers come to their end."""

import string


def random_schema(rng, depth=4):
    """A schema at most `depth` deep; every keyword in it is one that limits values."""
    leaves = [_integer, _number, _string, _pattern, _enum, _const, _word_of]
    nodes = [_object, _object, _array, _tuple, _any_of] if depth > 1 else []
    return rng.choice(leaves + nodes)(rng, depth)


def random_object(rng, depth=4):
    return _object(rng, depth)


def _integer(rng, depth):
    low = rng.randrange(-1000, 1000)
    schema = {"type": "integer", "minimum": low, "maximum": low + rng.randrange(0, 500)}
    if rng.random() < 0.3 and schema["maximum"] - low >= 10:
        schema["multipleOf"] = rng.choice([2, 3, 5])
    return schema


def _number(rng, depth):
    low = rng.randrange(-50, 50)
    return {"type": "number", rng.choice(["minimum", "exclusiveMinimum"]): low, "maximum": low + rng.randrange(1, 20)}


def _string(rng, depth):
    low = rng.randrange(0, 4)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randrange(0, 6)}


def _pattern(rng, depth):
    return {"type": "string", "pattern": rng.choice([r"^[a-f]{1,4}$", r"^(ab|cd)?x$", r"^[A-Z]\d{2}(-\d)?$"])}


def _enum(rng, depth):
    return {"enum": rng.sample([None, True, 1, -2.5, "a", 'q"\\', "é😀", [1, 2], {"k": "v"}], rng.randrange(1, 5))}


def _const(rng, depth):
    return {"const": rng.choice([0, False, "const", "\n\t", [None], {"a": [1]}])}


def _word_of(rng, depth):
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}


def _object(rng, depth):
    names = rng.sample([*string.ascii_lowercase, "a b", "ü", 'x"y'], rng.randrange(1, 5))
    return {
        "type": "object",
        "properties": {name: random_schema(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }


def _array(rng, depth):
    low = rng.randrange(0, 3)
    return {"type": "array", "items": random_schema(rng, depth - 1), "minItems": low, "maxItems": low + 2}


def _tuple(rng, depth):
    items = [random_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _any_of(rng, depth):
    return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randrange(2, 4))]}
