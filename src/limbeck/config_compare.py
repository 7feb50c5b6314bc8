"""The rows of a comparison, and what a paper's table says of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from limbeck.config_losses import Term
from limbeck.config_terms import Options, did_you_mean

Fraction100 = Annotated[float, Field(ge=0, le=100)]  # in percent
RowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]  # rows become folders and parts of --set paths


class Contender(Options):
    """One row of a comparison: what joins the common losses. The best of its settings on validation is reported."""

    settings: tuple[tuple[Term, ...], ...] = Field(
        min_length=1, description="Settings to choose from; each is the whole list of loss terms."
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Group of options of the task, such as semi_supervised -> options that this row has otherwise.",
    )
    adversary: dict[str, Any] = Field(
        default_factory=dict, description="Options of `adversary` that this row has otherwise."
    )


class PublishedColumn(Options):
    """What a paper's table says of the rows, for `limbeck compare --table`."""

    source: str = Field(description="Paper, table and column.")
    teacher: Fraction100 | None = Field(None, description="The teacher's test top-1 in the paper, %.")
    student: Fraction100 | None = Field(None, description="Test top-1 of the student trained without one, %.")
    rows: dict[RowName, Fraction100] = Field(
        default_factory=dict, description="Row -> test top-1 in the paper, %; some rows have no contender here."
    )
    robust_rows: dict[RowName, Fraction100] = Field(
        default_factory=dict, description="Row -> accuracy under AutoAttack in the paper, %, beside the clean one."
    )

    @model_validator(mode="after")
    def _both_accuracies(self) -> PublishedColumn:
        if self.robust_rows and self.robust_rows.keys() != self.rows.keys():
            raise ValueError(
                "`robust_rows` expected the rows of `rows`, whose clean accuracy stands there, got "
                f"{', '.join(sorted(self.robust_rows.keys() ^ self.rows.keys()))} in one of them only"
            )
        return self


class CompareOptions(Options):
    """The rows of `limbeck compare`."""

    contenders: dict[RowName, Contender] = Field(default_factory=dict, description="Row name -> settings.")
    baseline: str = Field("kl", description="Row that the paired differences are taken to.")
    vary_split: bool = Field(
        False,
        description="Each seed draws its own split and trains its own teachers, so that intervals cover both.",
    )
    equal_by_theory: tuple[tuple[str, str], ...] = Field((), description="Pairs printed as A/A controls.")
    published: PublishedColumn | None = Field(None, description="The paper's figures, for `--table`.")

    @model_validator(mode="after")
    def _known_rows(self) -> CompareOptions:
        if self.contenders:
            for row in (self.baseline, *(row for pair in self.equal_by_theory for row in pair)):
                if row not in self.contenders:
                    hint = did_you_mean(row, self.contenders)
                    raise ValueError(
                        f"`baseline` and `equal_by_theory` name rows of `contenders`; no row `{row}`, {hint}"
                    )
        return self
