#!/usr/bin/env python3
"""Records what Hugging Face's Jinja2 environment makes of small templates: record.py > recorded.json

Needs `pip install jinja2 transformers`; the tests need only the recording. Each case is a template and the variables that it
is given; the recording adds the text, or `true` under `fails` where rendering raises an exception."""
import json
import sys

import jinja2
import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

TOOL = {
    "type": "function",
    "function": {
        "name": "find_room",
        "description": 'Rooms with > 2 beds & a "view" (at night) 部屋',
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "description": " where "},
                "nights": {"type": ["integer", "null"], "default": 3},
                "extras": {"type": "array", "default": [None, True, 1.5, "owner's choice"]},
            },
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}
VARS = {
    "tools": [TOOL],
    "nothing": None,
    "yes": True,
    "no": False,
    "n": 7,
    "x": 2.5,
    "s": "Hello, wörld 🦀",
    "quote": "it's \"so\"",
    "owner": "owner's",
    "lines": "one\ntwo\r\n\nthree\n",
    "list": [3, 1, 2],
    "words": ["pear", "Apple", "fig", "apple", "Fig"],
    "mixed": [1, "1", 1.0, None, True, [], {}, "x"],
    "deep": {"b": {"c": [1, {"d": "e"}]}, "a": 1, "items": "shadow", "keys": 2},
    "empty": {},
    "people": [
        {"name": "Ann", "age": 31, "pet": {"name": "Rex"}},
        {"name": "bob", "age": 25, "pet": {"name": "ace"}},
        {"name": "Cy", "age": 31},
    ],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " hi "},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes.", "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": "ü"}}}]},
        {"role": "tool", "content": "none"},
    ],
    "numbers": [1e-05, 1.5e-07, 0.0001, 123456.789, 1e15, 1e16, 1e22, 2.5e-300, -0.0, 1.0, 7, -3, 0.1, 1e300,
                18446744073709551615, -9223372036854775808, 3.0e-5, 123456789012345680.0],
}
CASES = []


def case(*templates, **variables):
    CASES.extend((t, variables) for t in templates)


def expressions(*texts):
    CASES.extend(("{{ " + t + " }}", {}) for t in texts)


# Tests: each of many values.
VALUES = ["nothing", "yes", "no", "n", "x", "s", "list", "(1, 2)", "deep", "missing", "range(3)", "deep.items()",
          "list|map('string')", "''", "[]", "{}", "0", "namespace()", "range", "'ABC'", "'abc'", "'1a'"]
TESTS = ["boolean", "callable", "defined", "undefined", "false", "true", "float", "integer", "number", "iterable",
         "mapping", "none", "sequence", "string", "lower", "upper", "filter", "test", "escaped"]
for value in VALUES:
    expressions(*["(%s) is %s" % (value, test) for test in TESTS])
expressions(
    "4 is even", "4 is odd", "7 is divisibleby 7", "7 is divisibleby(2)", "1 is eq 1", "1 is equalto 1.0", "1 is ne 2",
    "2 is gt 1", "1 is lessthan 2", "2 is ge(2)", "1 is in [1, 2]", "'a' is in 'cat'", "nothing is sameas none",
    "yes is sameas true", "1 is sameas true", "'upper' is filter", "'even' is test", "x is not none", "not x is none",
    "missing is none", "missing == missing", "missing is defined or nothing is none", "2 is sameas 2.0",
)

# Text of values.
PRINTED = ["nothing", "yes", "no", "n", "x", "s", "quote", "owner", "list", "words", "mixed", "deep", "empty", "tools",
           "(1,)", "()", "(1, 'a')", "[]", "{}", "missing", "range(3)", "range(1, 10, 3)", "deep.keys()",
           "deep.values()", "deep.items()", "{1: 2, 'a': none, true: 3, 2.5: 1}", "[quote]", "[owner]", "['\\n\\t\\\\\\x07é\\u200b']",
           "['\\'']", "['\"']", "['\\u00ad\\u2028\\U0001F980 é']", "namespace(a=1, b='x')", "[missing]", "1.0", "1e100",
           "-0.0", "1e16", "123456789.123", "0.1 + 0.2", "1/3", "2**70", "1_000", "0x1f", "0b101", "0o17", "1e3", "1.5e-7",
           "[1.0, 1e-7, 1e20]", "true", "none", "numbers", "1e400", "-1e400", "1e400 - 1e400", "[1e400]"]
for text in PRINTED:
    expressions(text, "%s | string" % text, "'' ~ (%s)" % text, "(%s) | tojson" % text)

# tojson.
expressions(
    "tools | tojson", "tools[0] | tojson(indent=2)", "tools[0] | tojson(ensure_ascii=True)",
    "tools | tojson(separators=(',', ':'))", "deep | tojson(sort_keys=True)", "tools[0] | tojson(indent='\\t')",
    "list | tojson(indent=0)", "list | tojson(False, 4)", "deep | tojson(True, None, (',', ':'), True)",
    "'<b>&\\'' | tojson", "'\\x7f\\u2028' | tojson", "'\\x7f é🦀' | tojson(ensure_ascii=true)", "empty | tojson(indent=4)",
    "[[], {}] | tojson(indent=1)", "{1: 2, 1.5: 3, none: 4, true: 5} | tojson", "(1, 2) | tojson",
    "{'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=true, indent=2)", "missing | tojson", "deep.items() | tojson",
    "[1, missing] | tojson", "list | tojson(indent=-1)", "list | tojson(unknown=1)", "{1: 2, 'a': 3} | tojson(sort_keys=true)",
    "'\\u0000\\b\\f' | tojson", "{(1, 2): 3} | tojson", "list | tojson(indent=2, separators=(' ,', ' : '))", "range(2)|tojson",
)

# Operators.
expressions(
    "1 + 2 * 3", "7 // 2", "-7 // 2", "7 % 3", "-7 % 3", "7 % -3", "7.5 // 2", "-7.5 % 2", "7 / 2", "6 / 2", "2 ** 10",
    "2 ** -1", "-2 ** 2", "2 ** 3 ** 2", "1 / 0", "1 // 0", "1 % 0", "1.0 / 0", "'a' + 'b'", "'a' + 1", "1 + '1'", "'a' * 3", "3 * 'ab'",
    "'a' * -1", "[1] * 2", "[1] + [2]", "(1,) + (2,)", "[1] + (2,)", "none + 1", "missing + 1", "'a' + missing", "- missing",
    "-x", "+x", "-true", "true + 1", "'%s is %d' % ('n', 3)", "'%s' % list", "'%(a)s' % {'a': 1}", "'%5.2f|%-6s|%+d|%05d' % (x, 'ab', 3, 42)",
    "'%x %X %o %e %g %G' % (255, 255, 8, 12345.678, 0.0001, 1e20)", "'%r' % 'a'", "'%c%c' % ('a', 66)", "'%%'  % ()", "'%s' % ()", "'%d' % 'x'",
    "'%s %s' % ('a',)", "'a' % 1", "'%*d' % (5, 42)", "'%.3s' % 'abcdef'", "'%i' % 3.9", "'%#x' % 255", "'% d' % 5",
    "1 < 2 < 3", "1 < 3 < 2", "1 == 1.0", "1 == true", "'1' == 1", "[1, 2] == [1, 2]", "[1] == (1,)", "{'a': 1} == {'a': 1.0}",
    "'a' < 'b'", "'a' < 1", "none < 1", "[1, 2] < [1, 3]", "(1, 'a') < (1, 'b')", "1 != 2", "1 >= 1", "not 1", "not ''", "not missing",
    "1 and 2", "0 and 2", "0 or 'x'", "'' or nothing", "1 in list", "9 in list", "9 not in list", "'a' in deep", "'el' in s", "1 in 'a'",
    "'x' in none", "'x' in missing", "missing in list", "1 in 5", "2 in range(3)", "'ü' in 'grün'", "none in mixed", "true in [1]",
    "'a' if yes else 'b'", "'a' if no", "('a' if no) is defined", "'a' if no else 'b' if no else 'c'", "1 ~ 2 ~ none", "'a' ~ missing", "'a' 'b'",
    "1 if 2 > 1 else 0", "x == 2.5", "0.1 + 0.2 == 0.3", "10000000000 * 10000000000", "1 - 1.0", "3 | abs", "-3 | abs", "(-3) | abs",
    "2.0 ** 0.5", "1e308 * 10", "5 // 0.3", "7 // -2", "-7 // -2", "1 + true", "yes and no", "none == false", "'b' > 'a' and 2 > 1", "n is number and n > 3",
)

# Indices, slices, attributes.
expressions(
    "list[0]", "list[-1]", "list[5]", "list['a']", "list[1.0]", "list[true]", "s[0]", "s[-1]", "s[7]", "s[99]", "deep.b", "deep['b']", "deep.b.c[1].d", "deep.zzz", "deep.zzz.y",
    "deep.items", "deep['items']", "deep['keys']", "deep.a", "deep.missing is defined", "nothing.x", "nothing['x']", "n.x", "n['x']", "missing.x", "missing['x']", "missing()",
    "list[::-1]", "list[1:]", "list[:1]", "list[:-1]", "list[::2]", "list[5:]", "list[-2:]", "s[::-1]", "s[1:4]", "s[-3:]", "s[:-1]", "s[::2]", "s[10:2:-3]", "(1, 2, 3)[1:]", "(1, 2, 3)[::-1]",
    "range(10)[2:5]", "range(10)[::-2] | list", "range(10)[3]", "nothing[1:]", "deep[1:]", "missing[1:]", "list[::0]", "list['a':]", "s['upper']()", "'abc'.upper()", "list.append(1)", "deep.update({})", "deep.pop('a')",
    "list.append is defined", "list.count(1)", "list.index(2)", "list.index(9)", "(1, 2, 1).count(1)", "deep.get('a')", "deep.get('z')", "deep.get('z', 'd')", "deep.get()", "deep.items() | list", "deep.keys() | list", "deep.values() | list",
    "{'x': {'y': 1}}.x.y", "[[1, 2], [3]][0][1]", "{'a': 1}['a']", "{1: 'a'}[1]", "{1: 'a'}[1.0]", "{1: 'a'}['1']", "people[0].pet.name", "people[2].pet.name", "people[2].pet", "list.0", "people.0.name", "s.__class__", "deep.__len__()",
    "list[nothing:2]", "'abc'[1]", "''[0]", "[1, 2][missing]", "deep[list]", "1.5.is_integer()", "x.is_integer()", "s.nonsense", "s.nonsense()", "{'a': 1}.copy()", "list.copy()", "list.reverse()", "words[1:3]", "s[2:-2:2]",
)

# Methods of texts.
expressions(
    "' a b '.strip()", "'xxaxx'.strip('x')", "'abcba'.strip('ab')", "' a '.lstrip()", "' a '.rstrip() ~ '|'", "'\\n a\\t'.strip()", "'a,b,c'.split(',')", "'a,b,c'.split(',', 1)", "' a  b '.split()", "' a  b c '.split(none, 1)", "' a b  c '.rsplit(none, 1)",
    "'a,b,c'.rsplit(',', 1)", "'a'.split('')", "''.split()", "''.split(',')", "'abc'.split('b', maxsplit=1)", "'a b c'.split(' ', -1)", "' a b '.split(none, 0)", "lines.splitlines()", "lines.splitlines(true)", "'a=b=c'.partition('=')", "'a=b=c'.rpartition('=')", "'a'.partition('=')", "'a'.rpartition('=')",
    "s.startswith('He')", "s.startswith(('x', 'He'))", "s.endswith('🦀')", "s.startswith('e', 1)", "s.startswith(missing)", "s.startswith(1)", "'abc'.endswith('b', 0, 2)", "s.replace('l', 'L')", "s.replace('l', 'L', 1)", "'ab'.replace('', '-')", "'ab'.replace('', '-', 2)", "s.replace('a')",
    "'hello wORLD foo-bar'.title()", "\"it's ok\".title()", "'hELLO'.capitalize()", "'ßa'.capitalize()", "s.upper()", "s.lower()", "'aBc'.swapcase()", "'ß'.casefold()", "', '.join(words)", "''.join(list)", "','.join('abc')", "','.join(none)", "s.find('w')", "s.find('zz')", "s.rfind('l')", "s.index('zz')", "s.index('w')",
    "s.count('l')", "'abc'.count('')", "'aaa'.count('aa')", "''.count('')", "'abcabc'.count('b', 2)", "'abc'.find('')", "'abc'.rfind('')", "'abc'.find('c', -1)", "'12'.isdigit()", "'1a'.isdigit()", "''.isdigit()", "'a1'.isalnum()", "'ab'.isalpha()", "' '.isspace()", "'AB'.isupper()", "'ab1'.islower()", "'Ab C'.istitle()", "'ab'.isidentifier()", "'1a'.isidentifier()", "'é'.isascii()", "'12'.isnumeric()", "'12'.isdecimal()", "'a\\n'.isprintable()",
    "'42'.zfill(5)", "'-42'.zfill(5)", "'a'.ljust(3) ~ '|'", "'a'.rjust(3, '*')", "'ab'.center(5) ~ '|'", "'ab'.center(6, '-')", "'abc'.center(6, '-')", "'a'.center(4, '-')", "'abc'.removeprefix('a')", "'abc'.removesuffix('bc')", "'abc'.removesuffix('x')", "'a\\tb'.expandtabs(4)",
    "'{} {}'.format(1, 'a')", "'{1} {0}'.format(1, 2)", "'{a} {b[0]} {c.name}'.format(a=1, b=[2], c=people[0])", "'{:>5}|{:<5}|{:^5}'.format('a', 'b', 'c')", "'{:05.1f}|{:+}|{:,}'.format(2.345, 3, 1234567)", "'{!r:>6}'.format('a')", "'{{}}'.format()", "'{:x} {:#b} {:o}'.format(255, 5, 8)", "'{:.3}'.format('abcdef')", "'{:e} {:g} {:%}'.format(12345.678, 1e-5, 0.25)",
    "'{:>{}}'.format('a', 4)", "'{'.format()", "'}'.format()", "'{} {0}'.format(1)", "'{}'.format()", "'{x}'.format()", "'{:d}'.format('a')", "'{:*^9,.2f}'.format(1234.5)", "'{:08d}'.format(-42)", "'{}'.format(list)", "'{}'.format(none)", "'{:5}|'.format(1)", "'{:.2f}'.format(1)", "'{:_}'.format(1000000)", "'{:g}'.format(100000.0)", "'{:g}'.format(1e6)", "'{:s}'.format('q')", "'{:<5}'.format(true)", "'{0[a]}'.format({'a': 1})", "'{a}'.format_map({'a': 3})",
    "'x'.join(['a', 'b'])", "'a-b'.split('-')[1]", "'</think>' in messages[2].content", "messages[2].content.split('</think>')[-1].lstrip('\\n')", "messages[2].content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')",
)

# Filters.
expressions(
    "list | sort", "list | sort(reverse=true)", "words | sort", "words | sort(case_sensitive=true)", "people | sort(attribute='age') | map(attribute='name') | list", "people | sort(attribute='age,name') | map(attribute='name') | list", "mixed | sort", "people | sort(attribute='pet.name')", "words | unique | list", "words | unique(true) | list", "people | unique(attribute='age') | map(attribute='name') | join(',')", "mixed | unique | list",
    "people | map(attribute='name') | join(', ')", "people | map(attribute='pet.name') | list", "people | map(attribute='pet.name', default='-') | list", "people | map(attribute='pet', default='-') | list", "words | map('upper') | list", "words | map('replace', 'p', 'P') | list", "list | map('string') | list", "list | map", "words | map('nonsense') | list", "list | map(attribute='x', y=1) | list", "people | map('attr', 'name') | list",
    "list | select | list", "none | select('odd') | list", "none | map('upper') | list", "0 | rejectattr('x') | list", "'' | map | list", "n | map('upper') | list", "missing | selectattr('x') | list | length", "list | select('gt', 1) | list", "list | select('odd') | list", "list | reject('odd') | list", "mixed | select('string') | list", "people | selectattr('pet') | map(attribute='name') | list", "people | selectattr('pet', 'defined') | list | length", "people | rejectattr('age', 'eq', 31) | map(attribute='name') | first", "people | selectattr('age', '>', 30) | map(attribute='name') | list", "people | selectattr('pet.name', 'equalto', 'Rex') | list | length", "messages | selectattr('role', 'equalto', 'user') | list | length", "messages | selectattr('role', 'in', ['user', 'tool']) | map(attribute='role') | join('+')",
    "messages | selectattr('role', 'eq', 'nobody') and 1", "messages | selectattr('role', 'eq', 'nobody') | length", "messages | selectattr('role', 'eq', 'nobody') | first", "(list | map('string'))[0]", "list | select('nonsense') | list", "list | selectattr", "list | join", "list | join(', ')", "words | join('|', 'x')", "people | join(', ', attribute='name')", "none | join", "'abc' | join('-')", "deep | join(',')", "missing | join(',')",
    "list | first", "list | last", "[] | first", "[] | last", "s | first", "s | last", "deep | first", "deep | last", "list | length", "s | length", "deep | length", "nothing | length", "n | length", "missing | length", "deep.items() | length", "range(5) | length", "list | count", "list | sum", "people | sum(attribute='age')", "people | sum('age', 10)", "words | sum", "[] | sum", "[[1], [2]] | sum(start=[])", "list | min", "list | max", "words | min", "words | max", "words | max(true)", "[] | max", "people | max(attribute='age')", "mixed | max", "none | max",
    "list | reverse | list", "s | reverse", "none | reverse", "5 | reverse", "deep | reverse | list", "list | list", "s | list", "deep | list", "none | list", "missing | list", "range(3) | list", "deep | items | list", "missing | items | list", "list | items | list", "deep | dictsort", "deep | dictsort(false, 'value')", "{'b': 1, 'A': 2, 'a': 3} | dictsort", "{'b': 1, 'A': 2} | dictsort(true)", "{'b': 1, 'a': 2} | dictsort(by='value')", "{'b': 1, 'a': 2} | dictsort(reverse=true)", "list | dictsort",
    "range(7) | batch(3) | list", "range(7) | batch(3, 'x') | list", "range(7) | slice(3) | list", "range(7) | slice(3, 'x') | list", "[] | batch(3, 'x') | list", "[] | slice(2) | list", "list | slice(0) | list", "list | batch(0) | list", "people | groupby('age') | list", "people | groupby('age') | map(attribute='grouper') | list", "people | groupby('pet.name', default='zz') | map('first') | list", "people | groupby('name') | map(attribute='list') | map('length') | list", "words | groupby(0) | list", "people | groupby('nope') | list",
    "missing | default('d')", "nothing | default('d')", "nothing | default('d', true)", "'' | d('x', boolean=true)", "missing.x | default('d')", "deep.zzz | default", "0 | default(5, true)", "none | d(1)", "missing | default('d') | upper", "deep | attr('a')", "deep | attr('get')('a')", "s | attr('upper') is defined",
    "' a ' | trim", "'xax' | trim('x')", "n | trim", "s | upper", "s | lower", "'hello world-foo bar' | title", "\"it's (ok) [no]\" | title", "'hELLO wORLD' | capitalize", "nothing | upper", "n | lower", "s | replace('l', 'L')", "s | replace('l', 'L', 1)", "n | replace(7, 8)", "'<a> & \"b\\'' | escape", "'<a>' | e", "'<a>' | safe", "'<a>' | safe + '<b>'", "'<b>' + '<a>' | safe", "'<a>' | safe ~ '<b>' ~ 1", "'<b>' ~ ('<a>' | e)", "'<a>' | e | e", "'<a>' | e | forceescape", "['<a>' | safe]", "('<a>' | safe) * 2 + '<'", "('<a>' | safe) is escaped", "('<a>' | safe | upper) + '<'", "('<a>' | safe | string) + '<'", "('<a>' | safe) == '<a>'", "['<a>' | safe, '<b>'] | join", "'<' + '>'", "('<a>' | safe) + list", "('<a>' | safe)[0] is escaped", "('<a>' | safe) | tojson", "{'<a>' | safe: 1}['<a>']", "'<a>' | e | length", "'<p>a  b</p> c' | striptags", "'a b' | urlencode", "{'a b': 'c/d', 'e': 1} | urlencode", "'a/b?é' | urlencode", "s | wordcount", "'a b-c' | wordcount",
    "'abc' | center(7) ~ '|'", "'abc' | center(6) ~ '|'", "lines | indent", "lines | indent(2)", "lines | indent(2, true)", "lines | indent(2, blank=true)", "lines | indent('> ', true, true)", "'a' | indent", "'' | indent(2, true)", "'a\\nb' | indent(width=1)", "'one two three four' | truncate(9)", "'one two three four' | truncate(9, true)", "'one two three four' | truncate(9, false, '…')", "'one two three' | truncate(9)", "'one two three' | truncate(9, leeway=0)", "'one two' | truncate(2)", "'a b c d e f' | wordwrap(3)", "'abcdefgh ij' | wordwrap(3)", "'abcdefgh ij' | wordwrap(3, false)",
    "'42' | int", "'x' | int", "'x' | int(7)", "'0x1f' | int(base=16)", "'1f' | int(base=16)", "'0b11' | int(0, 2)", "2.9 | int", "-2.9 | int", "'2.9' | int", "' 5 ' | int", "'1_000' | int", "nothing | int", "list | int", "missing | int", "true | int", "'2.5' | float", "'x' | float", "'x' | float(1.5)", "3 | float", "'1e3' | float", "'inf' | float", "nothing | float", "2.5 | round", "3.5 | round", "2.567 | round(2)", "2.567 | round(1, 'floor')", "2.512 | round(1, 'ceil')", "42 | round", "42.55 | round(1)", "1234 | round(-2)", "1250 | round(-2)", "'a' | round", "2.5 | round(method='up')", "2.675 | round(2)", "1e20 | round(2)", "-2.5 | round", "0.5 | round | int",
    "1 | filesizeformat", "1000 | filesizeformat", "123456789 | filesizeformat", "123456789 | filesizeformat(true)", "999 | filesizeformat", "'%s-%s' | format('a', 1)", "'%(a)s' | format(a=2)", "'%s' | format", "s | nonsense", "list | string", "list | pprint", "s | string", "list | map('multiply', 2) | list", "-5 | abs", "2.5 | abs", "'a' | abs", "words | map('length') | sum", "words | map('first') | join", "[1, [2]] | map('string') | list", "people | map(attribute='name') | map('lower') | sort | join(',')", "words | select('in', 'pear') | list",
)

# Functions.
expressions("range(3) | list", "range(1, 4) | list", "range(5, 0, -2) | list", "range(0) | list", "range(1, 2, 0)", "range('a')", "range(100001)", "range(2.5)", "range()", "dict(a=1, b=2)", "dict([('a', 1)])", "dict({'x': 1}, y=2)", "dict(1)", "namespace(a=1).a", "namespace({'a': 2}).a", "namespace().a", "namespace(_a=1)", "nothing()", "n()", "raise_exception('no')", "undefined_function()", "strftime_now('%Y') | length", "joiner('|')() ~ 'a'", "cycler(1, 2).next()", "dict(a=1).a")

# Statements.
case(
    "{% if yes %}a{% elif no %}b{% else %}c{% endif %}", "{% if no %}a{% elif nothing %}b{% else %}c{% endif %}", "{% if missing %}a{% endif %}|", "{% if list and deep %}a{% endif %}",
    "{% for x in list %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }};{% endfor %}",
    "{% for x in list %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }};{% endfor %}", "{% for x in list %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }};{% endfor %}", "{% for x in list %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}", "{% for x in list %}{{ loop.cycle() }}{% endfor %}", "{% for x in list %}{{ loop }}{% endfor %}",
    "{% for x in [] %}a{% else %}none{% endfor %}", "{% for x in missing %}a{% else %}none{% endfor %}", "{% for x in nothing %}a{% endfor %}", "{% for x in n %}a{% endfor %}", "{% for c in 'añb' %}{{ c }}-{% endfor %}", "{% for k in deep %}{{ k }},{% endfor %}", "{% for k, v in deep.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in deep | items %}{{ k }}={{ v }};{% endfor %}", "{% for a, b in [(1, 2), [3, 4], 'xy'] %}{{ a }}{{ b }};{% endfor %}", "{% for a, b in [(1, 2, 3)] %}{% endfor %}", "{% for a, b in [1] %}{% endfor %}", "{% for a, b in [(1,)] %}{% endfor %}",
    "{% for x in list if x > 1 %}{{ x }}/{{ loop.length }};{% endfor %}", "{% for x in list if x > 9 %}{{ x }}{% else %}no{% endfor %}", "{% for x in range(9) %}{% if x == 1 %}{% continue %}{% elif x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}", "{% for x in list %}{% for y in list %}{{ loop.index }}{% if y == 1 %}{% break %}{% endif %}{% endfor %}{{ loop.index }};{% endfor %}",
    "{% for x in [[1, [2, [3]]], 4] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}@{{ loop.depth }}{% endif %}{% endfor %}", "{% for x in list %}{{ loop(list) }}{% endfor %}", "{% for x in list %}{% set y = x %}{% endfor %}{{ y }}|", "{% set y = 0 %}{% for x in list %}{% set y = y + x %}{{ y }},{% endfor %}{{ y }}", "{% set ns = namespace(y=0) %}{% for x in list %}{% set ns.y = ns.y + x %}{% endfor %}{{ ns.y }}",
    "{% if yes %}{% set z = 1 %}{% endif %}{{ z }}", "{% if no %}{% set s = 1 %}{% endif %}{{ s }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = (1, 2, 3) %}", "{% set x %}a{{ n }}b{% endset %}{{ x }}{{ x | length }}", "{% set x | upper | replace('A', 'b') %}a{% endset %}{{ x }}", "{% set s.x = 1 %}", "{% set ns = namespace() %}{% set ns._x = 1 %}", "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns.x.x.x is sameas ns }}", "{% set x = x + 1 %}{{ x }}", "{% set t = 1, 2 %}{{ t }}", "{% set true = 1 %}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% set c = 3 %}{% endwith %}{{ c }}|{{ a }}", "{% with %}{% set q = 1 %}{{ q }}{% endwith %}", "{% filter upper %}a{{ s }}{% endfilter %}", "{% filter replace('a', 'b') | upper %}banana{% endfilter %}", "{% block content %}x{{ n }}{% endblock %}", "{% block content %}x{% endblock content %}", "{% raw %}{{ x }}{% if %}{% endraw %}", "{%- raw -%} {{ x }} {%- endraw -%} z", "a {% raw %}\n b\n{% endraw %}\n c", "{# comment #}a{#- c -#} b", "{% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, 3) }}{{ f(b=4, a=5) }}",
    "{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f() }}|{{ f(1, 2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(c=2) }}", "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, c=3) }}", "{% macro f() %}[{{ caller() }}]{% endmacro %}{% call f() %}x{{ n }}{% endcall %}", "{% macro f() %}[{{ caller(1, 2) }}]{% endmacro %}{% call(a, b) f() %}{{ a }}{{ b }}{% endcall %}", "{% macro f(x) %}{% if x > 0 %}{{ x }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(5) }}", "{% set v = 1 %}{% macro f() %}{{ v }}{% endmacro %}{% set v = 2 %}{{ f() }}", "{% macro f() %}{% set v = 5 %}{{ v }}{% endmacro %}{{ f() }}{{ v }}|",
    "{% for x in list %}{% macro f() %}{{ x }}{% endmacro %}{{ f() }}{% endfor %}", "{{ f is defined }}{% macro f() %}{% endmacro %}{{ f is defined }}{{ f.name }}", "{% macro f(m) %}{% for x in m %}{% if loop.last %}{{ x }}{% endif %}{% endfor %}{% endmacro %}{{ f(list) }}", "{% macro f(a, a2) %}{{ a2 is defined }}{% endmacro %}{{ f(1) }}", "{% macro f() %}  x  {% endmacro %}{{ f() | trim }}|{{ f()|length }}",
    "{% generation %}a{{ n }}{% endgeneration %}b", "{% for m in messages %}{%- generation -%} {{ m.role }} {%- endgeneration -%}{% endfor %}", "{% generation %}{% set g = 1 %}{{ g }}{% endgeneration %}{{ g }}|", "{% for x in list %}{% generation %}{{ x }}{{ loop.index }}{% endgeneration %}{% endfor %}", "{% nonsense %}", "{% if %}", "{% endif %}", "{% for %}", "{{ }}", "{{ 1 + }}", "{{ (1 }}", "{% if yes %}", "{{ 'a }}", "{{ a b }}", "{# open", "{% include 'x' %}", "{{ 1 is }}", "{{ {'a': 1, } }}{{ [1, ] }}{{ (1, ) }}", "{% do 1 %}", "{{ loop }}|", "{% break %}",
    "{{ [1, 2, 3,] | length }}{{ f(1,) if false else 'ok' }}", "{{ dict(**{'a': 1}) }}{{ dict(*[[('b', 2)]]) }}", "{{ 'a' if x is string else 'b' }}", "{% if x is not string and x is not none %}ok{% endif %}", "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}{% set messages = messages[1:] %}{% endif %}{{ messages | length }}", "{{ {'a': {'b': {}}} }}", "{{ '}}' }}{{ '%}' }}", "{% set x = '{{ }}' %}{{ x }}", "{{ 1 }}{{- 2 -}} {{ 3 }}", "{{ \"a\\\"b\" }}{{ 'a\\'b' }}{{ '\\x41\\u00e9\\101\\q\\\\' }}", "{{ 'a\nb' }}",
)
# White space.
case(
    "a\n  {% if yes %}\n  b\n  {% endif %}\n  c\n", "  {% if yes %}\n    a\n  {% endif %}\nb", "a {%- if yes -%} b {%- endif -%} c", "a\n\n{%- if yes %}\n\nb{% endif %}\n\n", "  {%+ if yes %}x{% endif %}", "{% if yes +%}\nx{% endif %}", "x\n  {# c #}\ny", "x {# c #} y", "  {{ n }}\n  {{ n }}\n", "{{ n -}}\n\n  a", "a\n{{- n }}", "a  {{- n -}}  b", "{% for x in list %}\n  {{ x }}\n{% endfor %}\n", "{% for x in list -%}\n  {{ x }}\n{%- endfor %}", "a\r\n{% if yes %}\r\nb\r\n{% endif %}\r\nc\r\n", "a\rb\r", "a\n\n", "\n", "", "\t{% if yes %}\t\nx\t{% endif %}", "x{% if yes %}\n\n\ny{% endif %}", "  {% set a = 1 %}  \n  {{ a }}", "{%- set a = 1 -%}\n\n{{ a }}\n\n{%- set b = 2 -%}\n\n{{ b }}", "a  {% if yes %}  b  {% endif %}  c", "  {#- a -#}  b", "\n  {% if yes %}{% if yes %}\n x\n  {% endif %}{% endif %}\n", "{{ 'a\r\nb' }}", "a {%- raw %} b {% endraw -%} c", "é\u00a0{%- if yes %} x{% endif %}", "  {% if yes %}  {% endif %}  \n", "{{ n }}\n", "{{ n }}\n\n",
)
case("{{ text }}|{{ text | length }}", text="a\r\nb\rc")
case("{{ v }} {{ v | tojson }} {{ v | string }} {{ [v] }}", v=1e-05)
for number in VARS["numbers"]:
    case("{{ v }} {{ v | tojson }} {{ v | string }} {{ [v] }} {{ v + 0 }}", v=number)
# Whole templates.
case(
    "{%- if tools is iterable and tools | length > 0 %}{{ tools | length }}{% endif %}{{ nothing is iterable }}",
    "{%- for tool in tools %}{%- set f = tool.function %}{%- for name, p in f.parameters.properties | items %}{{ name ~ ': ' ~ (p.type | string) ~ (' = ' ~ p.default if p.default is defined else '') ~ '\\n' }}{%- endfor %}{%- endfor %}",
    "{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}",
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- for tc in m.tool_calls %}{%- if tc.function %}{%- set tc = tc.function %}{%- endif %}{{- '{\"name\": \"' ~ tc.name ~ '\", \"arguments\": ' }}{%- if tc.arguments is string %}{{- tc.arguments }}{%- else %}{{- tc.arguments | tojson }}{%- endif %}{{- '}' }}{%- endfor %}{%- endif %}{%- endfor %}",
    "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}{%- if ns.multi_step_tool and message.role == 'user' and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}{{ ns.last_query_index }}",
    "{% macro render_item_list(item_list, tag_name='required') %}{%- if item_list is defined and item_list is iterable and item_list | length > 0 %}{%- if tag_name %}{{- '\\n<' ~ tag_name ~ '>' -}}{% endif %}{{- '[' }}{%- for item in item_list -%}{%- if loop.index > 1 %}{{- ', '}}{% endif -%}{%- if item is string -%}{{ '`' ~ item ~ '`' }}{%- else -%}{{ item }}{%- endif -%}{%- endfor -%}{{- ']' }}{%- if tag_name %}{{- '</' ~ tag_name ~ '>' -}}{% endif %}{%- endif %}{% endmacro %}{{ render_item_list(tools[0].function.parameters.required) }}{{ render_item_list([1, none, 'x'], tag_name='') }}",
    "{% for m in messages %}{{ m['role'] | capitalize ~ ': ' ~ m['content'] | trim ~ '\\n' }}{% endfor %}",
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<s>' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "{%- for name in tools[0].function.parameters.properties.keys() | sort %}{{ name }};{%- endfor %}{{ tools[0].function.parameters.properties | dictsort | map('first') | list }}",
    "{% set content = messages[2].content %}{% set reasoning = '' %}{% if '</think>' in content %}{% set reasoning = ((content.split('</think>')|first).rstrip('\\n').split('<think>')|last).lstrip('\\n') %}{% set content = (content.split('</think>')|last).lstrip('\\n') %}{% endif %}{{ reasoning }}|{{ content }}",
    "{%- for k in deep %}{{ k }}{{ ',' if not loop.last }}{%- endfor %}",
)


def main():
    recorded = []
    for template, variables in CASES:
        variables = {**VARS, **variables}
        try:
            text, fails = _compile_jinja_template(template).render(**variables), False
        except RecursionError:
            raise
        except Exception as e:
            text, fails = type(e).__name__, True
        if " at 0x" in text:
            continue
        entry = {"template": template, "fails" if fails else "text": True if fails else text}
        own = {k: v for k, v in variables.items() if k not in VARS or VARS[k] is not v}
        if own:
            entry["vars"] = own
        recorded.append(entry)
    by = {"jinja2": jinja2.__version__, "transformers": transformers.__version__}
    lines = ",\n".join(json.dumps(r, ensure_ascii=False) for r in recorded)
    sys.stdout.write('{"recorded_with": %s,\n"vars": %s,\n"cases": [\n%s\n]}\n'
                     % (json.dumps(by), json.dumps(VARS, ensure_ascii=False), lines))


main()
