"""What the studies that compare arms have in common: planning their runs, running them, writing the effects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from auxseg.base.errors import InputError
from experiments.studies import effects, runner


@dataclasses.dataclass(frozen=True)
class ArmsStudy:
    """Arms of one protocol, and what is compared.

    Attributes:
        heading: of the summary.
        create_arms: settings that all runs share -> {arm: changes}.
        create_titles: ({arm: changes} of those that are run, settings) -> {arm: words}.
        create_effects: {arm: words} -> list of `effects.Effect`, by the words.
        reference: arm that --arms cannot leave out, since all are compared with it; '': none.
    """

    heading: str
    create_arms: Callable
    create_titles: Callable
    create_effects: Callable
    reference: str = ""

    def plan(self, protocol, only=()):
        """Returns the Runs of the study; arguments and errors as `run`."""
        config = runner.create_config(protocol)
        return runner.plan(config, self._choose(config, only), protocol)

    def run(self, protocol, folder, *, jobs=1, dry_run=False, reuse=(), only=(), names=("dice",)):
        """Runs the study and writes its tables and page; returns them, None after a dry run.

        Args:
            protocol: runner.Protocol.
            folder: pathlib.Path of the study.
            jobs: runs at once.
            dry_run: only list the runs.
            reuse: folders of other studies, as `runner.run_all`.
            only: names of arms, () for all.
            names: scores, of `comparison.SCORES`.

        Raises:
            InputError: as `runner.run_all` and `runner.choose_arms`.
        """
        planned = self.plan(protocol, only)
        workdirs = runner.run_all(folder, planned, jobs=jobs, dry_run=dry_run, reuse=reuse)
        if dry_run:
            return None
        config = runner.create_config(protocol)
        titles = self.create_titles(self._choose(config, only), config)
        found = self.create_effects(titles)
        return effects.write_effects(
            folder, workdirs, config, titles, found, names=names, heading=self.heading
        )

    def _choose(self, config, only):
        if only and self.reference and self.reference not in only:
            raise InputError(
                f"--arms: got {','.join(only)}, expected {self.reference} among them, with which all are compared"
            )
        return runner.choose_arms(self.create_arms(config), only)
