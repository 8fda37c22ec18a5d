"""YAML that holds plain values and nothing else: no tags, no aliases, no bottomless nesting, no key twice."""

from __future__ import annotations

from typing import Any

import yaml

_DEEPEST = 30  #: levels


def plain_values(text: str) -> Any:
    """What YAML text says. Raises yaml.YAMLError, also for tags, aliases, deep nesting and keys that stand twice."""
    try:
        return yaml.load(text, _Loader)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # of a scalar that is none of its type: 2001-99-99
        raise yaml.YAMLError(f"a value cannot be read ({error})") from None


class _Loader(yaml.SafeLoader):
    """Plain values only; a key that stands twice in one section is an error, and so is what could grow without bound."""

    depth = 0

    def compose_node(self, parent, index):
        if self.check_event(yaml.events.AliasEvent):
            alias = self.peek_event()
            problem = f"the alias *{alias.anchor}: write the value itself"
            raise yaml.composer.ComposerError(None, None, problem, alias.start_mark)
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.composer.ComposerError(None, None, "nested too deeply", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_yaml_int(self, node):
        value = super().construct_yaml_int(node)
        if abs(value) >= 2**63:
            raise yaml.constructor.ConstructorError(None, None, "a whole number of more than 64 bits", node.start_mark)
        return value

    def construct_mapping(self, node, deep=False):
        if not isinstance(node, yaml.MappingNode):
            problem = f"expected keys and values, found {node.id}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} stands there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
