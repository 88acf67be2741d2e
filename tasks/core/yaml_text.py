"""YAML as people write it: a key that stands twice is an error, where YAML's loaders keep the last and say nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    _SafeLoader = yaml.SafeLoader
else:  # libyaml reads a pipeline.yaml in a seventh of the time that PyYAML's own parser takes
    _SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeys(_SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known: dict[Any, yaml.Node] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node)
            if key in known:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"{key!r} stands here a second time; the first is in line {known[key].start_mark.line + 1}",
                    key_node.start_mark,
                )
            known[key] = key_node
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def read_yaml(text: str) -> Any:
    """What a YAML document holds, made of plain Python values only.

    Raises:
        yaml.YAMLError: It is no YAML, or a mapping has a key twice; `problem` and `problem_mark` say what and where.
    """
    return yaml.load(text, _UniqueKeys)
