"""What asking the registry can end in.

Unreachable
└── EtcdError            no answer that could be used
    ├── NoMember         none of the members answered
    ├── Forbidden        password, certificate or rights
    ├── Compacted        this revision is history that etcd has thrown away
    ├── TooLong          an answer beyond all bounds
    ├── TermOver         what a write was to depend on is over
    └── BadAnswer        not what etcd says
"""

from __future__ import annotations

from bootlockd.errors import Unreachable


class EtcdError(Unreachable):
    """The registry could not be asked. Says nothing about whether a write has landed."""


class NoMember(EtcdError):
    """No member answered, or there is no majority of them."""


class Forbidden(EtcdError):
    """The registry knows us not, or not for this."""


class Compacted(EtcdError):
    """What was asked for has been compacted."""


class TooLong(EtcdError):
    """More than ``wire.LONGEST`` bytes in one line."""


class TermOver(EtcdError):
    """Nothing was written: the office is not ours any more, or not without a break."""


class BadAnswer(EtcdError):
    """It can't be read as an answer of etcd."""
