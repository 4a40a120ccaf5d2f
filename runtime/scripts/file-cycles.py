#!/usr/bin/env python3
"""Measures the shape of the code, and fails where files of one crate depend on each other in a circle.

    file-cycles.py [--strict] [FOLDER]   prints every cycle and the measures: files, lines, sizes, lines in cycles

A file depends on another one of its crate when it names an item that is defined there: in a `use`, or by a path such as
`super::frame::Frame`. A re-export is followed to the definition. Tests, benches, examples and generated bindings do not count.
What a module's file and the files below it name of each other does not count as a cycle: they are one module. `--strict`
counts that too. The text is read, not compiled: macros and globs over enums are beyond it.
"""

import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_CODE = re.compile(r'(^|/)(tests|benches|examples|bindings|target)(/|\.rs$)|test_support|conformance')
DEFINES = re.compile(
    r'^\s*(?:pub(?:\([^)]*\))?\s+)?(?:const\s+|unsafe\s+|async\s+)*'
    r'(?:struct|enum|trait|type|fn|const|static|union|macro_rules!)\s+([A-Za-z_]\w*)', re.M)


def strip(text: str) -> str:
    """The code without comments, strings and what is compiled for tests only."""
    text = re.sub(r'//[^\n]*', '', text)
    text = re.sub(r'/\*.*?\*/', '', text, flags=re.S)
    text = re.sub(r'r#"[\s\S]*?"#', '""', text)
    text = re.sub(r'"(?:\\.|[^"\\])*"', '""', text)
    kept, at = [], 0
    for found in re.finditer(r'#\[cfg\((?:test|all\(test[^\]]*)\)\]', text):
        if found.start() < at:
            continue
        kept.append(text[at:found.start()])
        at = end_of_item(text, found.end())
    return ''.join(kept) + text[at:]


def end_of_item(text: str, at: int) -> int:
    """Where the item that begins at `at` ends: behind its semicolon or its braces."""
    depth = 0
    for index in range(at, len(text)):
        character = text[index]
        if character in '{([':
            depth += 1
        elif character in '})]':
            depth -= 1
            if depth == 0 and character == '}':
                return index + 1
        elif character == ';' and depth == 0:
            return index + 1
    return len(text)


def leaves(tree: str, prefix: tuple[str, ...] = ()):
    """The paths of a use tree, each with the name it is known under."""
    tree = tree.strip()
    brace = tree.find('{')
    if brace >= 0:
        head = [part.strip() for part in tree[:brace].split('::') if part.strip()]
        inside, depth, start = tree[brace + 1:tree.rfind('}')], 0, 0
        for index, character in enumerate(inside + ','):
            depth += {'{': 1, '}': -1}.get(character, 0)
            if character == ',' and depth == 0:
                if part := inside[start:index].strip():
                    yield from leaves(part, prefix + tuple(head))
                start = index + 1
        return
    path, _, alias = tree.partition(' as ')
    parts = prefix + tuple(part.strip() for part in path.split('::') if part.strip())
    if parts and parts[-1] == 'self':
        parts = parts[:-1]
    if parts:
        yield parts, (alias.strip() or parts[-1])


class Crate:
    """The files of one crate, by module path."""

    def __init__(self, folder: Path, files: list[Path]):
        self.modules: dict[tuple[str, ...], Path] = {}
        for file in files:
            parts = file.relative_to(folder / 'src').with_suffix('').parts
            self.modules[() if parts in (('lib',), ('main',)) else parts] = file
        self.text = {module: strip(file.read_text()) for module, file in self.modules.items()}
        self.items = {module: set(DEFINES.findall(text)) for module, text in self.text.items()}
        self.uses = {module: self.names(module) for module in self.modules}

    def names(self, module):
        names = {}
        for use in re.finditer(r'\buse\s+([^;]+);', self.text[module]):
            for path, name in leaves(use.group(1)):
                names[name] = path
        return names

    def absolute(self, module, path):
        """A path as seen from `module`, from the crate's root; None where it leads out of the crate."""
        if path[0] == 'crate':
            return path[1:]
        if path[0] == 'self':
            return module + path[1:]
        if path[0] == 'super':
            up = 0
            while up < len(path) and path[up] == 'super':
                up += 1
            return module[:len(module) - up] + path[up:] if up <= len(module) else None
        if module + path[:1] in self.modules:
            return module + path
        return None

    def home(self, path, seen=()):
        """The file that defines what an absolute path names, over re-exports."""
        for cut in range(len(path), -1, -1):
            module = path[:cut]
            if module not in self.modules:
                continue
            if cut == len(path):
                return module
            name = path[cut]
            if name in self.items[module] or (module, name) in seen:
                return module
            if name in self.uses[module]:
                onward = self.absolute(module, self.uses[module][name])
                if onward is not None:
                    return self.home(onward + path[cut + 1:], seen + ((module, name),))
            return module
        return None

    def arrows(self, strict: bool):
        """From each module, the modules it depends on."""
        arrows = {}
        for module, text in self.text.items():
            paths = [path for use in re.finditer(r'\buse\s+([^;]+);', text) for path, _ in leaves(use.group(1))
                     if not re.search(r'\bpub(\([^)]*\))?\s*$', text[:use.start()])]
            body = re.sub(r'\buse\s+[^;]+;', '', text)
            paths += [tuple(found.split('::')) for found in
                      re.findall(r'(?<![\w:])(?:[a-z_]\w*::)+[A-Za-z_]\w*', body)]
            targets = set()
            for path in paths:
                if (absolute := self.absolute(module, path)) is None:
                    continue
                home = self.home(absolute)
                if home is None or home == module:
                    continue
                if not strict and (home[:len(module)] == module or module[:len(home)] == home):
                    continue
                targets.add(home)
            arrows[module] = targets
        return arrows


def cycles(arrows):
    """The strongly connected components of more than one node (Tarjan)."""
    index, low, stack, on_stack, found, counter = {}, {}, [], set(), [], [0]

    def visit(node):
        index[node] = low[node] = counter[0]
        counter[0] += 1
        stack.append(node)
        on_stack.add(node)
        for onward in arrows.get(node, ()):
            if onward not in index:
                visit(onward)
                low[node] = min(low[node], low[onward])
            elif onward in on_stack:
                low[node] = min(low[node], index[onward])
        if low[node] == index[node]:
            component = []
            while True:
                last = stack.pop()
                on_stack.discard(last)
                component.append(last)
                if last == node:
                    break
            if len(component) > 1:
                found.append(sorted(component))

    for node in arrows:
        if node not in index:
            visit(node)
    return found


def main() -> int:
    strict = '--strict' in sys.argv
    root = Path(next((argument for argument in sys.argv[1:] if not argument.startswith('--')), ROOT))
    sys.setrecursionlimit(10_000)
    listed = subprocess.run(['git', 'ls-files', '*.rs'], cwd=root, check=True, capture_output=True, text=True).stdout.split()
    files = [root / name for name in listed if not NOT_CODE.search(name) and (root / name).exists()]
    crates = {}
    for file in files:
        folder = next((parent for parent in file.parents if (parent / 'Cargo.toml').exists()), None)
        if folder and 'src' in file.relative_to(folder).parts:
            crates.setdefault(folder, []).append(file)
    lines = {file: len(file.read_text().splitlines()) for file in files}
    in_cycles, found = 0, 0
    for folder, members in sorted(crates.items()):
        crate = Crate(folder, members)
        arrows = crate.arrows(strict)
        for component in cycles(arrows):
            found += 1
            in_cycles += sum(lines[crate.modules[module]] for module in component)
            print(f'{folder.relative_to(root)}: files in a circle')
            for module in component:
                onward = sorted(arrows[module] & set(component))
                names = ', '.join(str(crate.modules[other].relative_to(folder / 'src')) for other in onward)
                print(f"    {crate.modules[module].relative_to(folder / 'src')} -> {names}")
    sizes = sorted(lines.values())
    total = sum(sizes)
    print(f'{len(crates)} crates, {len(files)} files, {total} lines; median {statistics.median(sizes):.0f}, '
          f'p95 {sizes[int(len(sizes) * .95)]}, biggest {sizes[-1]}')
    print(f'lines in files of a circle: {in_cycles} ({100 * in_cycles / total:.1f} %)')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
