"""What a durable cluster keeps beside its recovery file before its first job: code, files, and which nodes it uses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dispy.errors import SettingsError
from dispy.ledger import ClusterLedger
from dispy.nodes import NodeAllocate
from dispy.recovery.book import ComputationStored, ItemStored
from dispy.recovery.journal import Journal
from dispy.recovery.recorder import Recorder
from dispy.shipping import Shipment, dumps_setup_args


def keep_computation(
    recorder: Recorder,
    recover_file: str | os.PathLike[str] | None,
    ledger: ClusterLedger,
    shipment: Shipment,
    items: Sequence[NodeAllocate],
) -> Journal:
    """Keep all that nodes need for the jobs of a cluster; returns where its jobs are to be kept.

    Of items of `nodes` that decide by a method of their own only the attributes are kept.

    Raises:
        SettingsError: it cannot be kept.
        ShippingError: the arguments of setup cannot be pickled.
    """
    journal, spec = recorder.journal(recover_file), ledger.spec
    try:
        if spec.code is not None and shipment.code is not None:
            journal.keep_bytes(spec.code.name, shipment.code)
        for file, kept in zip(shipment.files, spec.files, strict=True):
            journal.keep_file(kept.blob.name, file.path)
        stored = [_stored(item, journal, shipment) for item in items]
        recorder.computation_stored(
            recover_file, ComputationStored(spec, stored, ledger.reentrant, ledger.wants_local, ledger.may_embed)
        )
    except OSError as error:
        raise SettingsError(
            f"durable: what nodes need cannot be kept beside the recovery file: {error.strerror}"
        ) from None
    return journal


def _stored(item: NodeAllocate, journal: Journal, shipment: Shipment) -> ItemStored:
    depends = tuple((Path(name).name, journal.keep_hashed(Path(name))) for name in item.depends)
    setup_args = dumps_setup_args(shipment, item.setup_args)
    return ItemStored(item.host, item.port or 0, item.cpus, item.oversubscribe, depends, setup_args)
