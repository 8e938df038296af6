"""Damaged checkpoints: what is opened is the right state or an older undamaged one, and one line says so.

Files of the newest checkpoints are truncated, emptied, zeroed, deleted, flipped, exchanged. Run all cases with
`python tests/faults/damage.py --cases 500 --seed 0`.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from tally import Tally, main

from jaxformer import InputError
from jaxformer.training import Checkpoints

STEPS = (10, 20, 30)
State = dict[str, np.ndarray]


def draw_state(rng: np.random.Generator) -> State:
    """A state of arrays in several shapes and types; no two drawn ones are equal."""
    shapes = {"table": (31, 16), "weight": (16, 48), "bias": (48,), "scale": (1,)}
    state: State = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return state | {"step": np.int32(rng.integers(1000)), "key": rng.integers(2**32, size=2, dtype=np.uint32)}


def save(folder: Path, states: dict[int, State]) -> None:
    """Write checkpoints as a run does, all of them."""
    with Checkpoints(folder, keep=len(states)) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, jax.tree.map(jax.numpy.asarray, state), {"next_index": step}, loss=1 / step)


def save_without_checksums(folder: Path, states: dict[int, State]) -> None:
    """Write checkpoints as versions without checksums did."""
    with ocp.CheckpointManager(folder) as manager:
        for step, state in states.items():
            arrays = ocp.args.StandardSave(jax.tree.map(jax.numpy.asarray, state))
            position = ocp.args.JsonSave({"next_index": step})
            manager.save(step, args=ocp.args.Composite(state=arrays, position=position))


def truncate(path: Path, rng: np.random.Generator) -> None:
    os.truncate(path, rng.integers(max(1, path.stat().st_size)))


def make_empty(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(b"")


def zero(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    start, end = sorted(rng.integers(len(data) + 1, size=2))
    data[start:end] = bytes(end - start)
    path.write_bytes(bytes(data))


def delete(path: Path, rng: np.random.Generator) -> None:
    path.unlink()


def delete_folder(path: Path, rng: np.random.Generator) -> None:
    """Delete a file with all beside it; without its own folder, a checkpoint would be none."""
    path.unlink() if path.parent.name.isdecimal() else shutil.rmtree(path.parent)


def flip(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    for place in rng.integers(len(data), size=int(rng.choice([1, 1, 1, 5]))):
        data[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(data))


def append(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes() + rng.bytes(7))


def replace_by_another(path: Path, rng: np.random.Generator) -> None:
    """As a restored backup would: the file of an older checkpoint, if it has one of this name."""
    step = next(part for part in path.parts[::-1] if part in map(str, STEPS))
    other = Path(str(path).replace(f"/{step}/", f"/{STEPS[0]}/"))
    shutil.copy(other if other.exists() and other != path else Path(__file__), path)


LOUD = (truncate, make_empty, delete, delete_folder)  # which every version has noticed
KINDS: tuple[Callable[[Path, np.random.Generator], None], ...] = (
    *LOUD,
    zero,
    flip,
    flip,
    flip,
    append,
    replace_by_another,
)


@contextmanager
def quiet() -> Generator[Path]:
    """Send all that is written to standard output and standard error, by any thread or library, into a file."""
    with tempfile.NamedTemporaryFile() as file:
        kept = [os.dup(1), os.dup(2)]
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        try:
            yield Path(file.name)
        finally:
            for descriptor, before in zip((1, 2), kept, strict=True):
                os.dup2(before, descriptor)
                os.close(before)


def judge(folder: Path, states: dict[int, State], harmed: set[int], *, writable: bool) -> str | None:
    """Restore from a damaged folder; what is wrong with that, if anything is."""
    said: list[str] = []
    try:
        with Checkpoints(folder, writable=writable, notify=said.append) as checkpoints:
            state, position = checkpoints.restore(states[STEPS[0]])
    except InputError as error:
        lines = str(error).splitlines()
        if harmed < set(STEPS):
            return f"refused, though {set(STEPS) - harmed} are intact: {error}"
        return None if len(lines) == 1 and len(lines[0]) <= 300 else f"message of {len(str(error))} characters"
    step = position["next_index"]
    if step not in states:
        return f"another place in the data: {position}"
    if step < max(set(STEPS) - harmed, default=0):
        return f"opened {step}, older than need be"
    if not all(np.array_equal(state[name], states[step][name]) for name in states[step]):
        return f"another state than that of {step}"
    newer = [other for other in STEPS if other > step]
    if len(said) != len(newer) or any("\n" in line or len(line) > 300 for line in said):
        return f"opened {step} and said {said}"
    aside = {path.name for path in folder.iterdir() if path.name.endswith(".damaged")}
    return None if aside == ({f"{other}.damaged" for other in newer} if writable else set()) else f"found {aside}"


def fuzz(cases: int, seed: int) -> Tally:
    """Damage checkpoints at random and open them."""
    rng = np.random.default_rng(seed)
    tally = Tally("damaged checkpoints")
    with tempfile.TemporaryDirectory() as name, quiet() as output:
        states = {step: draw_state(rng) for step in STEPS}
        templates = {True: Path(name, "sealed"), False: Path(name, "unsealed")}
        save(templates[True], states)
        save_without_checksums(templates[False], states)
        for case in range(cases):
            sealed = rng.random() < 0.85
            folder = shutil.copytree(templates[sealed], Path(name, "case"))
            harmed = set(STEPS[-int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1])) :])
            done = []
            for step in sorted(harmed):
                paths = sorted(path for path in (folder / str(step)).rglob("*") if path.stat().st_size)
                paths = [path for path in paths if path.is_file() and (sealed or path.name != "commit_success.txt")]
                path, kind = paths[rng.integers(len(paths))], rng.choice(np.array(KINDS if sealed else LOUD))
                kind(path, rng)
                done.append(f"{kind.__name__} {path.relative_to(folder)}")
            problem = judge(folder, states, harmed, writable=bool(rng.random() < 0.5))
            if problem is None and output.stat().st_size:
                problem = f"printed {output.read_text()[:200]!r}"
            os.truncate(output, 0)
            tally.record(f"seed {seed}, case {case}, {'' if sealed else 'unsealed, '}{', '.join(done)}", problem)
            shutil.rmtree(folder)
    return tally


if __name__ == "__main__":
    main(fuzz, cases=500)
