"""The weights that a robot uses, from start to end, and their files: promotions are kept, and the last that passed post-deployment
validation are resumed after a restart."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.config import Config
from ..core.errors import ConfigError, WeightsError
from ..core.types import LearningSample, WeightsSnapshot
from ..matching import create_matcher
from ..matching.base import Matcher
from ..matching.weights import (
    DEFAULT_DIR,
    WeightsHeader,
    hash_state,
    load_weights,
    read_header,
    read_weights,
    remove_partial_files,
    write_weights,
)
from ..odometry.odometry import Odometry
from .learner import LearningStatus, WeightsUpdate
from .worker import Learning, start_learning

log = logging.getLogger(__name__)

CURRENT = "current"
KEPT = 10  # promoted files kept of a profile; the robot's disk is not to fill up
RESERVED = ("default", "previous")  # to load these means the shipped weights, and those in use before


class WeightsStore:
    """A directory with one file a profile, `PROFILE.safetensors`, and those of its last promotions, `PROFILE.v00042.safetensors`.

    A restart resumes the profile; promotions that never became one can be loaded by hand.
    """

    def __init__(self, directory: Path, profile: str = CURRENT) -> None:
        self.directory, self.profile = directory, profile or CURRENT

    def path(self, profile: str) -> Path:
        """The file of a profile. WeightsError when the name is not one."""
        if profile in RESERVED:
            raise WeightsError(
                f"'{profile}' cannot be the name of a profile, for it could never be loaded: 'default' stands for the "
                "shipped weights, 'previous' for those in use before; give another name"
            )
        if not re.fullmatch(r"[A-Za-z0-9_-]+", profile):
            raise WeightsError(
                f"'{profile}' is not the name of a profile; use letters, digits, '_' and '-', or a .safetensors file"
            )
        return self.directory / f"{profile}.safetensors"

    def write(self, matcher: str, snapshot: WeightsSnapshot, provenance: dict, confirmed: bool) -> None:
        """Writes the snapshot, atomically: as the profile once it is confirmed, until then under its version."""
        provenance = {
            **provenance,
            "steps": snapshot.steps,
            "validation_before_px": snapshot.validation_before,
            "validation_after_px": snapshot.validation_after,
        }
        path = (
            self.path(self.profile)
            if confirmed
            else self.directory / f"{self.profile}.v{snapshot.version:05d}.safetensors"
        )
        write_weights(path, matcher, snapshot.state, snapshot.version, provenance)
        for old in self._promoted()[:-KEPT]:
            old.unlink(missing_ok=True)  # another node of the same profile may have done it

    def prepare(self) -> None:
        """Removes files that a killed process left half written; warns when nothing can be written. To be called before any `write`."""
        remove_partial_files(self.directory)
        existing = next(folder for folder in (self.directory, *self.directory.absolute().parents) if folder.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            log.warning(
                f"learned weights cannot be kept: {self.directory} cannot be written to, because {existing} is "
                f"{'read-only for this user' if existing.is_dir() else 'no folder'}; give another folder of weights"
            )

    def newest_version(self) -> int:
        """The highest version that was written under this profile, 0 when none was; no number is given twice."""
        return max((int(file.name.split(".v")[-1].split(".")[0]) for file in self._promoted()), default=0)

    def resume(self, matcher: Matcher, base: str, named: bool) -> WeightsHeader | None:
        """Loads the profile's weights into the matcher; None when it holds none that belong there.

        Args:
            base: hash of the weights that the matcher was made with.
            named: the user chose the profile, say for a site: it is resumed whatever it was adapted from. Otherwise weights adapted
                from others than the base are renamed.

        Raises:
            WeightsError: weights of another network. Damaged files, or those of other weights, are renamed instead where the disk
                can be written to, as a robot must start without a user.
        """
        path = self.path(self.profile)
        if not path.is_file():
            return None
        try:
            header, _ = read_weights(path)
        except WeightsError as error:
            self._set_aside(path, error)
            return None
        if named or header.provenance.get("base") == base:
            return load_weights(matcher, path)
        other_name = f"{self.profile}_{header.hash}"
        try:
            for file in (path, *self._promoted()):
                file.rename(file.with_name(other_name + file.name[len(self.profile) :]))
            outcome = f"it is kept as profile '{other_name}', which can be loaded or named"
        except OSError as failure:
            outcome = f"it could not be renamed ({failure.strerror})"
        log.warning(
            f"{path} is not resumed, for it was adapted from other weights ({header.provenance.get('base', 'unknown')}) than "
            f"those given now ({base}); {outcome}"
        )
        return None

    def _set_aside(self, path: Path, error: WeightsError) -> None:
        damaged = path.with_name(f"{path.name}.damaged")
        try:
            path.rename(damaged)
            outcome = f"it is kept as {damaged}"
        except OSError as failure:
            outcome = f"it could not be renamed ({failure.strerror})"
        log.warning(f"learned weights are not resumed: {error}; {outcome}, the start is from the weights given")

    def _promoted(self) -> list[Path]:
        """The files of the profile's promotions, oldest first. No name of a profile contains a dot."""
        found = self.directory.glob(f"{self.profile}.v*.safetensors")
        return sorted(found, key=lambda file: (len(file.name), file.name))


class DeployedWeights:
    """The weights that odometry uses: resumed from a profile, loaded, saved, and replaced by what learning promotes or rolls back.

    Owned by the thread of the pipeline. A thread of its own writes to disk: odometry neither waits for a disk nor ends when it is full.

    Attributes:
        learning: what learns beside odometry; None while learning is off.
        origin: where the weights that it started with came from, their version and hash.
    """

    def __init__(
        self, odometry: Odometry, on_event: Callable[[dict[str, Any]], None], store: WeightsStore | None, named: bool
    ) -> None:
        """Resumes the profile of the store, if it holds weights that belong to the matcher, and starts learning.

        Args:
            on_event: called from any thread, with one dict per event.
            named: see `WeightsStore.resume`.
        """
        self.config, self.matcher = odometry.config, odometry.matcher
        self._odometry, self._on_event, self._store = odometry, on_event, store
        self._pretrained = {name: value.detach().clone() for name, value in self.matcher.state_dict().items()}
        self._base = hash_state(self._pretrained)
        if store is not None and self.matcher.trainable:
            store.prepare()
        resumed = store is not None and self.matcher.trainable and store.resume(self.matcher, self._base, named)
        self._hash = hash_state(self.matcher.state_dict())  # of the weights in use
        self.origin = self._describe_origin(bool(resumed))
        self._previous: WeightsSnapshot | None = None
        self._unconfirmed: tuple[WeightsSnapshot, dict[str, Any]] | None = None  # adopted; not yet the profile
        self._ended, self._mode = LearningStatus(), "off"
        self._stamp_ns = 0  # of the newest frame
        self._writer = ThreadPoolExecutor(1, "imatching-weights")
        self.learning = self._start_learning(self.config.learning.mode)

    # -- learning -----------------------------------------------------------------------------------------------------

    def status(self) -> LearningStatus:
        """How learning stands; while it is off, how it ended, with the state `off`. The weights are those in use."""
        status = self._ended if self.learning is None else self.learning.status()
        mode = "off" if self.learning is None else self._mode
        return replace(status, mode=mode, weights_version=self.matcher.weights_version, weights_hash=self._hash)

    def configure(self, config: Config) -> None:
        """Takes over settings that may change while running."""
        self.config = config
        if self.learning is not None:
            self.learning.configure(config)

    def set_learning(self, on: bool) -> None:
        """Starts learning, from the weights in use, or ends it; weights in post-deployment validation are rolled back then.

        Where `learning.mode` is off it starts in the background; where it has failed it starts anew.

        Raises:
            ConfigError: the matcher cannot learn.
        """
        if not on or self.status().state == "failed":
            self._end_learning(roll_back=True)
        if on and self.learning is None:
            mode = self.config.learning.mode
            self.learning = self._start_learning("thread" if mode == "off" else mode)
            if self.learning is None:
                raise ConfigError(
                    f"learning cannot be switched on: the matcher '{self.matcher.name}' cannot learn; start with one that does"
                )

    def begin_frame(self, stamp_ns: int, behind: bool) -> bool:
        """Before a frame: takes an update of learning into use, if there is one; returns whether there was.

        `behind`: odometry is late; a learning thread rests meanwhile.
        """
        self._stamp_ns = stamp_ns
        if self.learning is None:
            return False
        update = self.learning.poll(self._odometry.window.keyframes)
        if update is not None:
            self._adopt(update)
        self.learning.begin_frame(behind)
        return update is not None

    def notify_tracking_lost(self) -> None:
        """Tracking was lost with the weights in use."""
        if self.learning is not None:
            self.learning.notify_tracking_lost(self.matcher.weights_version, self._stamp_ns)

    def learn(self, sample: LearningSample | None) -> None:
        """Hands the newest solved window, if there is one, to learning."""
        if self.learning is not None and sample is not None:
            self.learning.submit(sample)
        self._keep_confirmed()

    def end_frame(self) -> None:
        """After a frame, however it ended."""
        if self.learning is not None:
            self.learning.end_frame()

    # -- by name ------------------------------------------------------------------------------------------------------

    def save(self, name: str) -> str:
        """Writes the weights in use as a profile, or as a file when the name ends in .safetensors. Returns what it did."""
        path = self._path(name)
        version = self.matcher.weights_version
        provenance = {"kind": "saved by request", "base": self._base}
        write_weights(path, self.matcher.name, self.matcher.state_dict(), version, provenance)
        return f"wrote version {version} to {path}"

    def load(self, name: str) -> str:
        """Takes a profile, a .safetensors file, `default` or `previous` into use. Returns what it did.

        Raises:
            WeightsError: no such weights, or they do not fit; the weights in use stay.
        """
        state, origin = self._read(name)
        learned = self.learning is not None
        self._end_learning()
        given = (
            self.matcher.weights_version,
            self._ended.weights_version,
            self._previous.version if self._previous else 0,
        )
        snapshot = WeightsSnapshot(max(given) + 1, hash_state(state), {k: v.clone() for k, v in state.items()})
        self._take(WeightsUpdate(snapshot, {}))
        self.set_learning(learned)
        return f"took {origin} into use as version {snapshot.version}{self._warn_of_profile()}"

    def flush(self) -> None:
        """Returns when the weights adopted so far are on disk."""
        self._writer.submit(lambda: None).result()

    def close(self, timeout_s: float | None = None) -> None:
        """Ends learning; promoted weights are on disk then. `timeout_s`: the longest wait for a step that is under way; None: any."""
        self._end_learning(timeout_s=timeout_s)
        self._writer.shutdown()

    # -- parts --------------------------------------------------------------------------------------------------------

    def _start_learning(self, mode: str) -> Learning | None:
        self._mode = mode
        config = replace(self.config, learning=replace(self.config.learning, mode=mode))
        newest = max(self._ended.weights_version, 0 if self._store is None else self._store.newest_version())
        return start_learning(self.matcher, config, self._on_event, self._pretrained, newest)

    def _end_learning(self, roll_back: bool = False, timeout_s: float | None = None) -> None:
        """Ends learning. `roll_back`: odometry continues, so that unconfirmed weights must not stay. `timeout_s`: as of its `close`."""
        if self.learning is None:
            return
        self.learning.close(timeout_s)
        update = self.learning.poll()
        if roll_back and update is None:  # else it was never adopted, or is a rollback itself
            update = self.learning.roll_back_unconfirmed(
                self._stamp_ns, "learning was switched off in post-deployment validation"
            )
        if update is not None and update.rollback:  # a promotion is not adopted any more, as nothing would validate it
            self._adopt(update)
        self._keep_confirmed()
        if self._unconfirmed is not None:
            log.info(
                f"weights version {self._unconfirmed[0].version} are still in post-deployment validation as learning ends: "
                "the profile stays what it was"
            )
        self._ended = replace(self.learning.status(), state="off")
        self.learning = self._unconfirmed = None

    def _describe_origin(self, resumed: bool) -> str:
        if not self.matcher.state_dict():
            return "no weights"
        origin = f"weights '{self.config.matcher.weights}'"
        if resumed and self._store is not None:
            profile = self._store.profile
            origin = f"weights of profile '{profile}' resumed from {self._store.path(profile)}"
        return f"{origin}, version {self.matcher.weights_version}, hash {self._hash}"

    def _adopt(self, update: WeightsUpdate) -> None:
        self._keep_confirmed()  # those before may have been confirmed by the very window that brought these
        self._take(update)
        kind = "rollback" if update.rollback else "promotion"
        provenance = {"kind": kind, "base": self._base, "stamp_ns": self._stamp_ns, "seed": self.config.seed}
        self._unconfirmed = update.snapshot, provenance
        self._write(update.snapshot, provenance, confirmed=False)
        self._keep_confirmed()

    def _keep_confirmed(self) -> None:
        """Writes weights as the profile, which a restart resumes, once they have passed post-deployment validation."""
        if self._unconfirmed is None or self.learning is None:
            return
        if self.learning.status().confirmed_version == self._unconfirmed[0].version:
            self._write(*self._unconfirmed, confirmed=True)
            self._unconfirmed = None

    def _take(self, update: WeightsUpdate) -> None:
        state = {k: v.detach().clone() for k, v in self.matcher.state_dict().items()}
        self._previous = WeightsSnapshot(self.matcher.weights_version, self._hash, state)
        self._odometry.adopt(update.snapshot, update.features)
        self._hash = update.snapshot.hash

    def _read(self, name: str) -> tuple[dict[str, Tensor], str]:
        """The weights of a name, and where they come from."""
        if name == "previous":
            if self._previous is None:
                raise WeightsError("there are no previous weights: nothing was promoted or loaded yet")
            return self._previous.state, f"version {self._previous.version}"
        path = DEFAULT_DIR / f"{self.matcher.name}.safetensors" if name == "default" else self._path(name)
        loaded = create_matcher(replace(self.config.matcher, device="cpu"))
        load_weights(loaded, path)
        return loaded.state_dict(), str(path)

    def _path(self, name: str) -> Path:
        if name.endswith(".safetensors"):
            return Path(name).expanduser()
        if self._store is None:
            raise WeightsError(
                f"a profile needs a weights directory, and none was given; give '{name}' as a .safetensors file"
            )
        return self._store.path(name)

    def _warn_of_profile(self) -> str:
        """What a restart would resume instead of the weights in use, if anything."""
        profile = None if self._store is None else self._store.path(self._store.profile)
        if profile is None or not profile.is_file() or read_header(profile).hash == self._hash:
            return ""
        return f"; a restart still resumes {profile.name}, unless ~/save_weights writes these there"

    def _write(self, snapshot: WeightsSnapshot, provenance: dict[str, Any], confirmed: bool) -> None:
        if self._store is not None:
            self._writer.submit(self._write_now, self._store, snapshot, provenance, confirmed)

    def _write_now(
        self, store: WeightsStore, snapshot: WeightsSnapshot, provenance: dict[str, Any], confirmed: bool
    ) -> None:
        try:
            store.write(self.matcher.name, snapshot, provenance, confirmed)
        except (OSError, WeightsError) as error:
            log.warning(f"weights version {snapshot.version} are in use, but could not be written: {error}")
            self._on_event({"event": "weights_not_written", "version": snapshot.version, "error": str(error)})
