"""Counts of ends of runs in eight recorded spot zones: the prior of a zone that has no past yet.

Ten-minute readings of four zones of 2022 and 195 s readings of four of 2023-02, both recorded by
skypilot-org/spot-traces ("Can't Be Late", NSDI'24). `benchmarks/policy.py --counts` prints this
table from the traces. A replay leaves out the zones that it replays (`pooled_prior(without=...)`).

Order: [down, up], then age bins of `hazards.AGE_EDGES_S`.
"""

from __future__ import annotations

from rayburst.fleet.hazards import RunCounts, pooled_prior

RECORDED: tuple[RunCounts, ...] = (
    RunCounts(
        zone="us-west-2a_k80_1",
        tick_s=600.0,
        readings=((42, 12, 5, 9, 7, 4, 3, 0, 0, 0), (43, 38, 32, 55, 81, 99, 136, 201, 296, 700)),
        ends=((30, 7, 0, 2, 2, 0, 1, 0, 0, 0), (5, 6, 4, 1, 1, 3, 2, 7, 4, 9)),
    ),
    RunCounts(
        zone="us-west-2a_v100_1",
        tick_s=600.0,
        readings=(
            (87, 59, 42, 55, 51, 47, 58, 83, 63, 11),
            (88, 63, 51, 85, 99, 95, 101, 142, 233, 250),
        ),
        ends=((28, 17, 12, 11, 7, 1, 2, 5, 3, 1), (25, 12, 6, 9, 8, 8, 5, 3, 3, 8)),
    ),
    RunCounts(
        zone="us-west-2b_k80_8",
        tick_s=600.0,
        readings=(
            (134, 63, 59, 96, 84, 58, 60, 70, 54, 53),
            (134, 107, 84, 125, 130, 114, 114, 118, 77, 29),
        ),
        ends=((71, 4, 5, 20, 16, 6, 3, 5, 2, 2), (27, 23, 16, 18, 15, 14, 6, 7, 5, 2)),
    ),
    RunCounts(
        zone="us-west-2b_v100_8",
        tick_s=600.0,
        readings=(
            (171, 75, 56, 83, 78, 86, 106, 145, 179, 181),
            (170, 85, 63, 87, 65, 54, 47, 32, 0, 0),
        ),
        ends=((96, 19, 11, 15, 8, 2, 4, 5, 5, 6), (85, 22, 13, 20, 15, 3, 6, 6, 0, 0)),
    ),
    RunCounts(
        zone="us-east-1c_v100_1",
        tick_s=195.0,
        readings=(
            (1294, 695, 578, 952, 1107, 1178, 1286, 1456, 1424, 784),
            (1297, 670, 534, 766, 853, 790, 898, 1211, 1123, 1261),
        ),
        ends=((104, 46, 23, 38, 22, 27, 32, 23, 19, 10), (112, 50, 41, 36, 20, 31, 10, 17, 15, 11)),
    ),
    RunCounts(
        zone="us-east-1f_v100_1",
        tick_s=195.0,
        readings=(
            (1063, 509, 423, 652, 759, 738, 950, 1360, 989, 798),
            (1075, 553, 476, 752, 828, 939, 1167, 1612, 1797, 2717),
        ),
        ends=((109, 32, 25, 28, 21, 16, 10, 18, 18, 9), (96, 29, 24, 35, 17, 18, 13, 21, 16, 16)),
    ),
    RunCounts(
        zone="us-east-2a_v100_1",
        tick_s=195.0,
        readings=(
            (550, 299, 211, 348, 414, 457, 633, 769, 679, 492),
            (562, 326, 293, 490, 624, 726, 939, 1410, 2138, 7797),
        ),
        ends=((42, 32, 10, 12, 10, 5, 3, 18, 8, 6), (35, 12, 12, 15, 5, 14, 8, 12, 8, 24)),
    ),
    RunCounts(
        zone="us-west-2b_v100_1",
        tick_s=195.0,
        readings=(
            (359, 208, 126, 214, 215, 232, 250, 214, 98, 0),
            (361, 205, 182, 335, 454, 537, 710, 1126, 1725, 12606),
        ),
        ends=((19, 33, 4, 12, 5, 4, 8, 5, 4, 0), (25, 9, 3, 5, 5, 8, 6, 7, 6, 20)),
    ),
)

PRIOR = pooled_prior(RECORDED)
"""Rates of a spot pool of which nothing is known yet."""
