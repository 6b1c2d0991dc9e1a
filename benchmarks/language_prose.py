"""The text of the language benchmark's section; findings are written by hand, from the figures
beside them.
"""

TITLES = {"t5": "T5", "blip": "BLIP"}
# that the sweep is compared with, merge by merge
RIVALS = (
    "average",
    "sum",
    "task_arithmetic",
    "hyper_linear",
    "ties",
    "regmean",
    "regmean_pp",
    "mix_of_show",
    "ssr",
)
# whose figures are told for each base model
BY_BASE = (
    "IterIS",
    "IterIS, the paper's objective",
    "IterIS + preserve",
    "regmean_pp",
    "mix_of_show",
    "regmean",
    "average",
)
T5_WHAT = """\
A `T5ForConditionalGeneration` of 1.0 M weights (width 128, 3 + 3 layers), trained here from scratch on seven tasks of a small
language of its own: sort, reverse, drop vowels, count vowels, compare ends, later weekday, feeling of a sentence. LoRAs by PEFT
(rank 8, q and v of all 18 attention layers, 300 steps) on held-out variants, a new word in front of the same kind of input and
another rule: `descend` and `rotate` (generation), `order` and `mood` (yes or no), `earlier` (seven weekdays). The score is the
share of answers that are right word for word, on 60 fresh inputs per task; `base tasks` is that of the base model's own seven.
Calibration: 50 inputs per task without labels; rank of the merged LoRA: the sum of the ranks.
`task_arithmetic` and `hyper_linear` are at the coefficients with the smallest error of the logits on 20 calibration samples
per task. Rows marked as default are the library's defaults. The paper's objective: target `delta`, balance `delta`, no unit
gain. `+ preserve`: as many samples of the base model's tasks, weight 1, with the base as their teacher."""
BLIP_WHAT = """\
A `BlipForConditionalGeneration` (width 64, 3 + 3 layers), trained here from scratch on drawn pictures of one of 6 colours,
4 shapes and 2 places, with captions that are plain ("a red ring on the left") or have any adjective, after the words `plain`
and `free`. LoRAs by PEFT (rank 8, q, k and v of the text decoder's self-attention, as in the paper) on three styles, each
after a new word: `praise`, `blame` and `dream`, each with four adjectives of its own. A caption scores if it has an adjective
of the style that was asked for, none of another, and colour, shape and place are right; 60 fresh pictures per style. `base
tasks` are plain captions, which must be without any style. Methods as above; `+ preserve` is with plain captions."""
BASES = """\
All figures are over {bases} base models, each trained with a seed of its own, and {seeds} seeds of LoRAs, samples and inputs on
each: {runs} runs. ± is the standard error over groups and runs; groups share LoRAs, and runs share bases."""
ITERATIONS = """\
The paper's Algorithm 1 (`engine="iterate"`), iteration 0 being the solve with X~ = X, as in its table 7; mean over the pairs of
neighbours, with the paper's objective. Nothing changes any more after {solves} solves. The sweep takes one pass."""
ABLATIONS = """\
One setting of the defaults changed, on the same pairs. The change of the mean is paired. Padding counted: inputs filled up to 32
tokens, as the published code fills up its inputs. The paper's "regulariser off" has no counterpart: with alpha = 0 the library
refuses Gram matrices that cannot be solved."""
WEIGHTS = """\
The scale of the tasks (`balance`), the bound of unit gain, and the weight of the preserve task, on the same pairs: what a weight
keeps of the base tasks and what it costs. Bounds of 1 are without unit gain."""
BEST_SCALE = """\
Rivals that have a free scale, as published and at the scale with the smallest error of the logits on 20 calibration samples per
task (RegMean: 50), on the pairs of neighbours:"""
FINDINGS_T5 = """\
T5: IterIS is ahead of every rival: pairs 0.960 against 0.924 for RegMean++, its closest one, and the lead grows with the number
of LoRAs (three 0.865 and 0.794, five 0.793 and 0.713). Why: the inputs of the merged model differ from those of the single
ones, and most in the later layers; RegMean++ corrects only that, with its shrunk off-diagonal, and averages of weights correct
nothing. Both bases say the same. By itself it does not keep the base model's own tasks (0.47). A preserve task of weight 0.1
keeps 0.72 for 0.005 ± 0.003, of weight 1 0.87 for 0.045 ± 0.010, where the LoRAs answer the same kind of input by another rule.
So one scale for all tasks holds here, too: before it, weight 1 cost 0.228 ± 0.073 (one base, tables of commit ebeb10a, where a
scale by what all LoRAs stacked do was tried, too, and was no better). `full` and `uniform` do as well. Unit gain gives the
LoRAs more where three and five are merged (0.882 and 0.807), takes from pairs (-0.007 ± 0.004), and costs base tasks
everywhere; it stays off for language. More samples help still: 100 instead of 50 bring 0.010 ± 0.003."""
FINDINGS_BLIP = """\
BLIP: IterIS is ahead here, too: pairs 0.851 against 0.819 for Mix-of-Show and 0.753 for RegMean++, three 0.847, 0.815, 0.606.
The mean is that of two bases that differ much: on the second one a LoRA is weak by itself (`dream`; the LoRAs alone 0.739
instead of 0.989). Merged LoRAs have 0.97 of what they have alone, pairs and three. A preserve task keeps the plain captions
(0.95 instead of 0.17 at a weight of 0.01, 0.99 from 0.1 on), and weight 1 costs 0.006 ± 0.004. Unit gain takes 0.04 ± 0.02
here. The absolute figures depend on what the training came to: the first base's pairs are 0.979 here, and were 0.856 when it
was trained on another processor."""
PROSE = {
    "t5": {
        "what": T5_WHAT,
        "iterations": ITERATIONS,
        "ablations": ABLATIONS,
        "findings": FINDINGS_T5,
    },
    "blip": {
        "what": BLIP_WHAT,
        "iterations": ITERATIONS,
        "ablations": ABLATIONS,
        "findings": FINDINGS_BLIP,
    },
}
