"""The same functions, faster, on a GPU: one file per kernel. `why_not` says in words why one cannot run.

Nothing here imports Triton before a kernel is asked for; `functional` imports this room inside its functions.
"""

from limbeck.kernels.availability import why_not

__all__ = ["why_not"]
