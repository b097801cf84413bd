"""The run folder: config, log, checkpoints, predictions, summary, and the lock on them.

Whatever is in a run folder is complete: files are written beside their place, flushed, synced and
renamed. The checkpoint is the truth; config.json, log.csv and best.pt are rewritten from it.
"""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import pickle
import platform
import secrets
import shlex
import socket
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import distributed, nn

from common.config import (
    FREE,
    LOG_COLUMNS,
    RESULTS_DIR,
    ROOT,
    RUNS_DIR,
    WARNED,
    Config,
    StudentConfig,
    changes,
    differing,
    is_finished,
    named_teachers,
    no_folder,
    read_json,
)
from common.device import together
from common.errors import UserError, warn
from common.models import NETWORKS, build, count_multiply_adds, count_parameters

# In the order in which --overwrite removes them: stopped halfway, it leaves either a checkpoint
# of the old run, from which all the others can be made again, or nothing.
FILES = (
    "summary.json",
    "predictions.npz",
    "best.pt",
    "log.csv",
    "config.json",
    "last.pt",
    "previous.pt",
)
TAKES = (
    "a network has to take images (N, 1, 28, 28) uint8, so to begin with Normalize() of "
    "common/models.py, and to return logits (N, 10)"
)
CHECKPOINT = {"epoch", "network", "optimizer", "rows", "best", "last", "config"}


def write_atomically(path: Path, content: bytes, keep_as: Path | None = None) -> None:
    """Write a temporary file beside `path`, sync it, and rename it into place.

    What stood there goes to `keep_as`, if that is given.

    On failure the temporary file is removed and what stood at `path` is still there, or at
    `keep_as`. Raises UserError (exit code 1) when the disk refuses.
    """
    # A name of its own: two students may leave their teacher's logits in one place at once.
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        _write_synced(scratch, content)
        if keep_as:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, keep_as)
        os.replace(scratch, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"cannot write {path}",
            str(error),
            "make room or correct the permissions, then go on with --resume",
            exit_code=1,
        ) from error


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system has a way to."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network mounts cannot
                raise
        finally:
            os.close(descriptor)


def save(path: Path, content: dict[str, Any], keep_as: Path | None = None) -> None:
    """Write tensors and plain values as a checkpoint file: the same content, the same bytes.

    keep_as: where the file goes that was at `path`.
    """
    buffer = io.BytesIO()  # through memory: the archive then carries no file name
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer(), keep_as)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint file, every CRC tested, no pickle run.

    Raises ValueError if the file is damaged or holds anything but tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise ValueError(f"its part {broken} is damaged")
            if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                raise ValueError("it is no checkpoint")  # but predictions.npz, as it may be
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except zipfile.BadZipFile as error:  # which says "File is not a zip file"
        raise ValueError("it is no checkpoint, or its end is missing") from error
    except pickle.UnpicklingError as error:  # torch's own message says how to run the pickle
        raise ValueError("it holds more than tensors and plain values, or is damaged") from error
    except Exception as error:  # zip, pickle and torch each have their own ways to fail
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error
    if not isinstance(content, dict):
        raise ValueError("it is not one of our checkpoints")
    return content


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def in_project(path: Path) -> str:
    """A path as config.json records it: from the project's folder if it lies in there."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


class Teacher(NamedTuple):
    path: Path
    arch: str
    network: nn.Module
    digest: str  # SHA-256 of the file


def find_teachers(config: StudentConfig) -> list[Path]:
    """The best.pt of each teacher that a student's configuration names, or the default one.

    By default the ResNet of the same recipe and seed under runs/; else the published one of that
    seed, or of the lowest seed there is; with --resume that of the run. Raises UserError if there
    is none, or the run's is gone.
    """
    if config.teacher is not None:
        paths = map(Path, config.teacher)
        return [path / "best.pt" if os.path.isdir(path) else path for path in paths]
    if config.resume:  # with those that the run began with, whatever has come since
        with contextlib.suppress(OSError, ValueError):
            folder = config.folder(config.name("resnet"), RUNS_DIR)
            if paths := [ROOT / path for path in named_teachers(read_json(folder / "config.json"))]:
                if gone := [str(path) for path in paths if not path.exists()]:
                    raise UserError(
                        f"cannot resume {folder}",
                        f"its teacher is gone ({', '.join(gone)})",
                        "put that back, or say with --teacher where it is now",
                    )
                return paths
    own = RUNS_DIR / config.recipe / "teacher-resnet" / f"seed-{config.seed}"
    published = RESULTS_DIR / config.recipe / "teacher-resnet"
    by_seed = sorted(published.glob("seed-*"), key=lambda path: (len(path.name), path.name))
    for folder in (own, published / own.name, *by_seed):
        # A teacher still in training has a best.pt too, but not yet its final one.
        if (folder / "best.pt").exists() and is_finished(folder):
            return [folder / "best.pt"]
        if folder == own and (own / "config.json").exists():
            lacks = "has no best.pt" if is_finished(own) else "is not finished"
            warn(f"{own} {lacks}: another teacher is taken")
    raise UserError(
        "no teacher",
        f"neither {own} nor {published} holds a finished run with a best.pt",
        f"run `python train_teacher.py --recipe {config.recipe} --seed {config.seed}` first, "
        "or name one with --teacher",
    )


def read_teacher(path: Path) -> Teacher:
    """Load a teacher's best.pt.

    Raises UserError if it is missing, damaged, not a teacher's, or not yet its final one.
    """
    what_to_do = (
        "name the folder of a run of train_teacher.py, or its best.pt, with --teacher (of another "
        "program's teacher EXTENDING.md says how it is saved)"
    )
    try:
        digest = file_digest(path)
        content = load(path)
        if file_digest(path) != digest:
            raise ValueError("it was replaced while it was read: its run still goes on")
        if (path.parent / "config.json").exists() and not is_finished(path.parent):
            raise ValueError("its training is not finished: go on with it first")
        if not {"arch", "role", "weights"} <= content.keys():
            raise ValueError("it is not the best.pt of a run, which has arch, role and weights")
        arch, role, weights = content["arch"], content["role"], content["weights"]
        if not isinstance(arch, str) or not isinstance(weights, dict):
            raise ValueError("it is not the best.pt of a run")
        if role != "teacher":
            raise ValueError(f"it is the checkpoint of a {role}")
        if arch not in NETWORKS:
            raise ValueError(
                f"its architecture {arch!r} is none of {', '.join(NETWORKS)}: enter it in NETWORKS "
                "of common/models.py"
            )
        network = build(arch)
        expected = network.state_dict()
        if other := sorted(map(str, weights.keys() ^ expected.keys())):
            raise ValueError(f"its weights are not those of a {arch}, as to {other[0]}")
        for key, value in expected.items():
            if not isinstance(weights[key], torch.Tensor):
                raise ValueError(f"its {key} is not a tensor")
            if weights[key].shape != value.shape:
                raise ValueError(
                    f"its {key} has shape {tuple(weights[key].shape)}, a {arch} for "
                    f"10 classes has {tuple(value.shape)}"
                )
            if not weights[key].isfinite().all():
                raise ValueError(f"its {key} is not finite")
        network.load_state_dict(weights)
        what_to_do = TAKES
        count_multiply_adds(network)  # raises for another number of classes
    except (OSError, ValueError, RuntimeError) as error:  # the last of a forward pass
        why = textwrap.shorten(str(error), 400)
        if isinstance(error, FileNotFoundError):
            why = "there is no such file"
            if is_finished(path.parent):
                why += ", though its run is here: it is kept without its weights"
                what_to_do = "name another with --teacher, such as a published one of seed 0"
        raise UserError(f"cannot use {path} as the teacher", why, what_to_do) from error
    return Teacher(path, arch, network, digest)


class Run:
    """One run's folder, locked for as long as the Run is open."""

    def __init__(self, folder: Path, config: Config, facts: dict[str, Any]):
        """Claim `folder` for a run of `config`.

        facts: role, name and whatever else config.json is to record of the run. Raises
        UserError if the folder is in use, not writable, holds another run, or holds this one and
        neither --resume nor --overwrite was given.
        """
        self.folder = folder
        self.settings = asdict(config) | facts
        if config.out is not None:
            self.settings["out"] = in_project(Path(config.out))
        self.checkpoint: dict[str, Any] | None = None
        self._last_is_damaged = False
        self._lock = FileLock(self.folder / ".lock")
        try:
            if why := no_folder(folder):
                raise NotADirectoryError(why)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refuse_other_things()
            self._claim()
            self._open(config)
        except OSError as error:
            self.close()
            raise UserError(
                f"cannot use {folder} as a run folder", str(error), "choose another with --out"
            ) from error
        except BaseException:
            self.close()
            raise

    def _refuse_other_things(self) -> None:
        """A folder of folders or of code is no place for a run's files."""
        there = [
            path for path in self.folder.glob("[!.]*") if path.is_dir() or path.suffix == ".py"
        ]
        if there and not any((self.folder / name).exists() for name in FILES):
            raise UserError(
                f"{self.folder} holds no run but other things",
                textwrap.shorten(", ".join(sorted(path.name for path in there)), 60),
                "choose another folder with --out: it need not be there yet",
            )

    def _claim(self) -> None:
        holder = self.folder / ".holder"
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            who = "another process"
            with contextlib.suppress(OSError):
                who = holder.read_text().strip() or who
            raise UserError(
                f"{self.folder} is in use",
                f"{who} is writing to it",
                "wait for it to end, or choose another folder with --out",
            ) from None
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")

    def _probe(self) -> None:
        """Find out before training whether all that a run leaves can be written here."""
        weights, logits = 4 * self.settings.get("parameters", 0), 2 << 20  # bytes
        # Each checkpoint has weights, momenta and best weights; there are last.pt, previous.pt
        # and the one that is being written.
        checkpoints = 3 - sum((self.folder / name).exists() for name in ("last.pt", "previous.pt"))
        size = checkpoints * (3 * weights + logits) + weights + logits
        scratch = self.folder / ".probe.tmp"
        try:
            _write_synced(scratch, bytes(size))
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}", str(error), "make room, or choose another --out"
            ) from error
        finally:
            scratch.unlink(missing_ok=True)

    def _open(self, config: Config) -> None:
        for name in ("probe", *FILES):  # of a process that was killed
            for leftover in self.folder.glob(f".{name}*.tmp"):
                leftover.unlink(missing_ok=True)
        present = [name for name in FILES if (self.folder / name).exists()]
        if present and not config.resume and not config.overwrite:
            state, resume = "an unfinished", "go on with it"
            if self.complete:
                state, resume = "a finished", "check it"
            raise UserError(
                f"{self.folder} holds {state} run",
                "a run is never overwritten in silence",
                f"add --resume to {resume}, --overwrite to replace it, or choose another --out",
            )
        if config.resume and present:
            self._resume(present)
            if self.complete:
                return
        self._probe()
        if config.overwrite:
            for path in (*map(self.folder.joinpath, present), *self.folder.glob("logits-*.pt")):
                path.unlink()

    def _resume(self, present: Sequence[str]) -> None:
        damage = self._damage() if self.complete else ""
        if self.complete and not damage:
            self._compare(read_json(self.folder / "config.json"))
            return
        self.checkpoint = self._last_good_checkpoint()
        if self.checkpoint:
            recorded, epoch = self.checkpoint["config"], self.checkpoint["epoch"]
            later = recorded.get("resumed_with", [])
            known = dict(recorded)
            for change in later:
                known |= change
            changed = self._compare(known)
            if changed and epoch < recorded["epochs"]:  # else nothing is left to train
                later = [*later, {"after_epoch": epoch} | changed]
                if keys := [key for key in changed if key != "git_commit"]:
                    warn(
                        f"{changes(known, self.settings, keys)}; the run goes on, but its bits may "
                        "differ from an uninterrupted one's"
                    )
            self.settings = recorded | ({"resumed_with": later} if later else {})
            if damage:
                warn(f"{damage}; made again from the checkpoint of epoch {epoch}")
                (self.folder / "summary.json").unlink()
        elif damage:
            raise UserError(
                f"{self.folder} is damaged",
                damage,
                "put that file back, or use --overwrite in place of --resume to start again",
            )
        elif present != ["config.json"]:  # all that a run has before its first checkpoint
            raise UserError(
                f"no checkpoint in {self.folder}",
                f"it holds {', '.join(present)} of a run, but nothing to go on from",
                "put last.pt back, use --overwrite in place of --resume, or choose another --out",
            )
        else:
            try:
                self._compare(read_json(self.folder / "config.json"))
            except (OSError, ValueError) as error:
                raise UserError(
                    f"cannot read {self.folder / 'config.json'}, so what the run was made with",
                    str(error),
                    "put it back, or use --overwrite in place of --resume to start again",
                ) from error

    def _damage(self) -> str:
        """What is wrong with the files of this finished run, in words; empty if nothing is."""
        from common.records import Unreadable, read_results  # pandas, only when there is a run

        config, best = self.folder / "config.json", self.folder / "best.pt"
        try:
            epochs = read_json(config).get("epochs")
            digest = read_results(self.folder, epochs)["weights_sha256"]
        except Unreadable as error:
            return str(error)
        except (OSError, ValueError) as error:
            return f"{config}: {error}"
        # A run may be kept without its weights and checkpoints, as most of the published ones are.
        if not best.exists():
            return f"{best}: missing" if (self.folder / "last.pt").exists() else ""
        return "" if file_digest(best) == digest else f"{best}: not the file that the run left"

    def _compare(self, before: dict[str, Any]) -> dict[str, Any]:
        """Refuse to go on with a run of other settings; return what else is new."""
        now = self.settings
        places = [(each.get("device"), each.get("device_name")) for each in (before, now)]
        elsewhere = places[0] != places[1]  # where the hardware may have another precision
        keys = differing(before, now, FREE)
        warned = [key for key in keys if key in WARNED or (key == "precision" and elsewhere)]
        refused = [key for key in keys if key not in warned]
        if refused:
            raise UserError(
                f"{self.folder} holds a run with other settings",
                changes(before, now, refused),
                "use its settings, another --out, or --overwrite in place of --resume",
            )
        noted = {key: now[key] for key in warned}
        if before.get("git_commit") != now.get("git_commit"):
            noted["git_commit"] = now.get("git_commit")
        return noted

    def _last_good_checkpoint(self) -> dict[str, Any] | None:
        damage = []
        for name in ("last.pt", "previous.pt"):
            path = self.folder / name
            try:
                checkpoint = load(path)
                if not checkpoint.keys() >= CHECKPOINT or not isinstance(
                    checkpoint["config"], dict
                ):
                    raise ValueError("it is not a checkpoint of a run")
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                damage.append(f"{path} cannot be loaded ({error})")
                continue
            if damage:
                self._last_is_damaged = True
                warn(f"{damage[0]}; going on from {path}, epoch {checkpoint['epoch']}")
            return checkpoint
        if damage:
            raise UserError(
                f"no checkpoint in {self.folder} can be loaded",
                ", ".join(damage),
                "use --overwrite in place of --resume to start again",
            )
        return None

    @property
    def complete(self) -> bool:
        return is_finished(self.folder)

    @property
    def resume_command(self) -> str:
        """The command line that goes on with this run, in the terms it was started with."""
        given = [word for word in sys.argv if word not in ("--resume", "--overwrite")]
        count, nodes = (os.environ.get(f"{of}_WORLD_SIZE", "") for of in ("LOCAL", "GROUP"))
        launcher = ["torchrun", "--nproc-per-node", count] if count else [sys.orig_argv[0]]
        command = shlex.join([*launcher, *given, "--resume"])
        if nodes in ("", "1"):
            return command
        return f"{command}  # on each of {nodes} nodes, with torchrun's other options as before"

    def save_config(self) -> None:
        self._write_json("config.json", self.settings)

    def save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep `checkpoint` as last.pt and the one before it as previous.pt."""
        previous = None if self._last_is_damaged else self.folder / "previous.pt"
        save(self.folder / "last.pt", checkpoint, keep_as=previous)
        self._last_is_damaged = False

    def save_log(self, rows: Sequence[dict[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, LOG_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.folder / "log.csv", text.getvalue().encode())

    def save_best(self, weights: dict[str, torch.Tensor], epoch: int, val_accuracy: float) -> None:
        keys = ("arch", "role", "name", "recipe", "seed")
        content = {key: self.settings[key] for key in keys}
        content |= {"epoch": epoch, "val_accuracy": val_accuracy, "weights": weights}
        save(self.folder / "best.pt", content)

    def finish(self, predictions: dict[str, np.ndarray], summary: dict[str, Any]) -> None:
        """Write predictions, then the summary, whose presence says that the run is complete."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **predictions)
        write_atomically(self.folder / "predictions.npz", buffer.getbuffer())
        digest = file_digest(self.folder / "best.pt")
        self._write_json("summary.json", summary | {"weights_sha256": digest})

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.folder / name, (json.dumps(content, indent=2) + "\n").encode())

    def close(self) -> None:
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                (self.folder / ".holder").unlink()
            self._lock.release()


class Follower:
    """What a run's other processes have in place of its Run: they write nothing."""

    complete, checkpoint, resume_command = False, None, ""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder, self.settings = folder, settings

    def _nothing(self, *_: Any) -> None:
        pass

    save_config = save_checkpoint = save_log = save_best = finish = close = _nothing


@contextlib.contextmanager
def open_run(folder: Path, config: Config, facts: dict[str, Any]) -> Iterator[Run | Follower]:
    """The run in `folder`, closed at the end. Of several processes the first alone has it."""
    in_group = distributed.is_initialized()
    follows = in_group and distributed.get_rank() > 0
    settings = asdict(config) | facts
    run = Follower(folder, settings) if follows else Run(folder, config, facts)
    try:
        if in_group:
            found = [run.complete, run.checkpoint]
            everyone = [{}] * distributed.get_world_size()
            try:
                with together():
                    distributed.broadcast_object_list(found)
                    distributed.all_gather_object(everyone, settings)
            except UserError:
                if follows:  # the first process has refused, and has said why
                    sys.exit(1)
                raise
            if follows:
                run.complete, run.checkpoint = found
            for other in everyone:  # a node may have other files
                if what := differing(everyone[0], other, FREE | WARNED):
                    raise UserError(
                        "the processes are not of one run",
                        changes(everyone[0], other, what),
                        "give all of them one command, with the same --teacher, data and precision",
                    )
        yield run
        if in_group:
            with together():
                distributed.barrier()  # the others wait until the first has written all
            distributed.destroy_process_group()
    finally:
        run.close()


def describe(network: nn.Module, config: Config, name: str, data_digest: str) -> dict[str, Any]:
    """What config.json records of a run beyond its settings and its device.

    Raises UserError for a network that does not take images or does not return logits.
    """
    try:
        multiply_adds = count_multiply_adds(network)
    except Exception as error:
        raise UserError(
            f"{name}: its network does not work",
            f"{type(error).__name__}: {error}",
            TAKES,
        ) from error
    return {
        "role": config.role,
        "name": name,
        "parameters": count_parameters(network),
        "multiply_adds": multiply_adds,
        "data_sha256": data_digest,
        "git_commit": git_commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
    }


def git_commit() -> str | None:
    """The code's commit, with -dirty where files of it were changed; None if it has none."""
    words = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    command = ["git", "-C", str(ROOT), *words]
    ours = os.environ | {"GIT_CEILING_DIRECTORIES": str(ROOT.parent)}  # none around it
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, env=ours
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
