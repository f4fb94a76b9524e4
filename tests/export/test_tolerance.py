"""How answers are compared, image by image: bounds that are measured, figures, and what is said of what is off."""

import numpy as np
import pytest

from export.verification.archive import batches, load_cases, save_cases
from export.verification.check import Report
from export.verification.tolerance import FACTOR, Floats, Pixels, restored

SIZES = batches(8)
COUNT = sum(SIZES)
FLOATS = np.linspace(-2, 4, COUNT * 10, dtype=np.float32).reshape(COUNT, 10)


def floats(right=FLOATS, reaction=1e-4):
    return Floats.measured(right, right + np.float32(reaction))


def levels(n_bins=256, seed=0):
    """Values of pixels, none within 0.2 of the border of two levels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, n_bins, (COUNT, 8, 8, 3)) + rng.uniform(0.2, 0.8, (COUNT, 8, 8, 3))


def pixels(values, reaction=1e-3, n_bins=256):
    return Pixels.measured(values, values + reaction, n_bins=n_bins)


class TestFloats:
    def test_equal_ones_pass_with_figures_of_zero(self):
        assert floats().judge(FLOATS) == ({"max": 0, "mean": 0, "unstable": 0}, None)

    @pytest.mark.parametrize(("times", "passes"), [(0.9, True), (1.1, False)])
    def test_bound_is_a_multiple_of_the_change_of_that_image(self, times, passes):
        reaction = np.full((COUNT, 1), 1e-5, np.float32)
        reaction[4] = 1e-3
        answer = Floats.measured(FLOATS, FLOATS + reaction, FLOATS - reaction / 2)
        assert answer.bound[3] < answer.bound[4] / 20
        found = FLOATS.copy()
        found[3, 7] += times * answer.bound[3]
        figures, problem = answer.judge(found)
        assert (problem is None) == passes
        # What another image is allowed does not help this one.
        if problem:
            assert problem.startswith("image 3 differs from the model by ")
            assert f"allowed {answer.bound[3]:.1e}" in problem

    def test_image_that_changes_by_chance_less_than_others_is_allowed_what_the_median_one_is(self):
        reaction = np.full((COUNT, 1), 1e-4, np.float32)
        reaction[3] = 0
        answer = Floats.measured(FLOATS, FLOATS + reaction)
        assert answer.bound[3] == pytest.approx(answer.bound[2], rel=0.1)

    def test_numbers_near_zero_are_not_compared_relative_to_themselves(self):
        # As the log-variances of a posterior that is the prior.
        right = np.full((COUNT, 4), 1e-9, np.float32)
        answer = Floats.measured(right, right)
        assert answer.judge(np.zeros_like(right))[1] is None
        assert answer.judge(right + np.float32(1e-5))[1] is not None

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_one_value_that_is_no_number_is_a_problem(self, value):
        found = FLOATS.copy()
        found[-1, -1] = value
        assert f"image {COUNT - 1} differs from the model by " in floats().judge(found)[1]

    def test_image_to_which_the_model_has_no_finite_answer_is_not_judged_and_counted(self):
        right = FLOATS.copy()
        right[2, 0] = np.nan
        answer = floats(right)
        figures, problem = answer.judge(right)
        assert (figures["unstable"], problem) == (1, None)
        found = right.copy()
        found[1] += 1
        assert "image 1 differs" in answer.judge(found)[1]
        assert "no finite answer to any" in floats(np.full_like(FLOATS, np.nan)).judge(FLOATS)[1]

    def test_every_image_that_is_off_is_counted(self):
        found = FLOATS.copy()
        found[[2, 5, 9]] += 1
        found[5] += 1
        problem = floats().judge(found)[1]
        assert problem.startswith("image 5 ") and problem.endswith(f"(and so for 2 more of {COUNT} images)")


class TestPixels:
    @pytest.mark.parametrize("n_bins", [256, 32])
    def test_right_ones_pass(self, n_bins):
        answer = pixels(levels(n_bins), n_bins=n_bins)
        assert np.array_equal(answer.right, np.floor(levels(n_bins)) * (256 // n_bins))
        assert answer.judge(answer.right) == ({"max": 0, "mean": 0, "differing": 0, "unstable": 0}, None)

    def test_one_subpixel_off_by_one_is_a_problem_where_the_models_value_is_far_from_a_border(self):
        answer = pixels(levels())
        found = answer.right.copy()
        found[20, 7, 7, 2] ^= 1
        assert answer.judge(found)[1].startswith("1 subpixels of image 20 differ from the model by up to 1; allowed")

    @pytest.mark.parametrize("n_bins", [256, 32])
    @pytest.mark.parametrize(("place", "sign"), [(0.0001, -1), (0.9999, 1)])
    def test_on_the_border_that_level_is_allowed_and_no_other(self, n_bins, place, sign):
        step, values = 256 // n_bins, levels(n_bins)
        values[4, 1, 2, 0] = 17 + place
        answer = pixels(values, n_bins=n_bins)
        for change in (sign * step, -sign * step, 2 * sign * step, sign * (step // 2 or 3)):
            found = answer.right.copy()
            found[4, 1, 2, 0] = int(found[4, 1, 2, 0]) + change
            figures, problem = answer.judge(found)
            assert (problem is None) == (change == sign * step), change
            assert figures["max"] == abs(change)

    def test_beyond_first_and_last_level_there_is_no_border(self):
        values = levels()
        values[0, 0, 0] = [-0.0001, 256.0001, 300]
        answer = pixels(values)
        assert answer.right[0, 0, 0].tolist() == [0, 255, 255]
        assert not answer.above[0, 0, 0, 0] and not answer.below[0, 0, 0, 1:].any()

    def test_bound_is_that_of_the_image(self):
        reaction = np.full((COUNT, 1, 1, 1), 1e-4)
        reaction[3] = 0.1
        values = levels()
        values[[2, 3], 0, 0, 0] = 5.1
        answer = Pixels.measured(values, values + reaction, n_bins=256)
        assert answer.below[3, 0, 0, 0] == 1 and answer.below[2, 0, 0, 0] == 0
        assert answer.bound[3] == pytest.approx(FACTOR * 0.1, rel=1e-2)

    def test_unstable_image_is_counted_and_the_others_are_held_to_theirs(self):
        # v moved by 1e-6 moves 20 subpixels by hundreds of levels: that is the model's and no file's fault.
        values = levels()
        moved = values.copy()
        moved[6].reshape(-1)[:20] += 100
        answer = Pixels.measured(values, moved, n_bins=256)
        found = answer.right.copy()
        found[6] += 77
        figures, problem = answer.judge(found)
        assert (figures["unstable"], figures["max"], problem) == (1, 0, None)
        found[7, 0, 0, 0] ^= 1
        assert "1 subpixels of image 7" in answer.judge(found)[1]

    def test_stable_images_are_judged_where_most_are_unstable(self):
        values = levels()
        moved = values.copy()
        moved[3:, 0, 0, 0] += 100
        moved[:3, 0, 0, 0] += 1e-3
        figures, problem = (answer := Pixels.measured(values, moved, n_bins=256)).judge(answer.right)
        assert (figures["unstable"], problem) == (COUNT - 3, None)
        found = answer.right.copy()
        found[1, 0, 0, 1] ^= 2
        assert "1 subpixels of image 1" in answer.judge(found)[1]

    def test_values_that_are_no_numbers_are_not_judged(self):
        values = levels()
        values[1] = np.nan
        answer = pixels(values)
        found = answer.right.copy()
        found[1] = 7
        assert answer.right[1].max() == 0
        figures, problem = answer.judge(found)
        assert (figures["unstable"], figures["max"], problem) == (1, 0, None)
        # The others are.
        found[2, 0, 0, 0] ^= 1
        assert "1 subpixels of image 2" in answer.judge(found)[1]

    def test_model_that_is_unstable_everywhere_says_nothing_of_a_file(self):
        answer = pixels(levels(), reaction=0.3)
        assert "the model itself is unstable on every image" in answer.judge(answer.right)[1]


def test_answers_are_the_same_from_a_file(tmp_path):
    values = levels()
    values[0] = 7.00001
    answers = {"v": floats(), "images": pixels(values)}
    arrays = {f"{name}/{part}": value for name, one in answers.items() for part, value in vars(one).items()}
    save_cases({**arrays, "twice": FLOATS}, tmp_path / "cases.npz")
    loaded = load_cases(tmp_path / "cases.npz")
    assert {*loaded} == {*arrays, "twice"}
    for name, one in answers.items():
        parts = {key.partition("/")[2]: value for key, value in loaded.items() if key.startswith(f"{name}/")}
        again = restored(parts)
        assert type(again) is type(one)
        for part, value in vars(one).items():
            assert np.array_equal(vars(again)[part], value), part
    # What is there twice takes its room once.
    save_cases(arrays, tmp_path / "fewer.npz")
    assert (tmp_path / "cases.npz").stat().st_size - (tmp_path / "fewer.npz").stat().st_size < FLOATS.nbytes / 2


@pytest.mark.parametrize("size", [8, 32, 64, 128, 256, 512])
def test_there_are_three_batches_of_any_size_of_images(size):
    sizes = batches(size)
    assert len(sizes) == 3 and len(set(sizes)) >= 2 and sizes[0] == 1


def compared(answer, found):
    """The report of an endpoint that gives `found` where the model gives `answer`, and the sizes of its batches."""
    outputs = {f"out/decode/images/{part}": value for part, value in vars(answer).items()}
    cases = {"in/decode/number": np.arange(COUNT), "batches": np.array(SIZES), **outputs}
    report, calls = Report(), []

    def call(_, inputs):
        calls.append(len(inputs["number"]))
        return found(inputs["number"])

    report.compare("decode", call, cases, "decode")
    return report, calls


class TestCompare:
    def test_is_tried_at_every_batch(self):
        report, calls = compared(floats(), lambda numbers: {"images": FLOATS[numbers]})
        assert calls == list(SIZES) and report.problems == []
        assert report.parity == {"decode": {"images": {"max": 0, "mean": 0, "unstable": 0}}}

    @pytest.mark.parametrize(
        ("found", "problem"),
        [
            (
                lambda n: {"images": FLOATS[n].astype(np.float64)},
                "decode returns images as float64 [1, 10], ",
            ),
            (lambda n: {"images": FLOATS[n][:, :1]}, "decode returns images as float32 [1, 1], float32 [3, 1], float"),
            (lambda n: {}, "decode returns images as nothing where the model has float32 [1, 10], [3, 10], [17, 10]"),
            (lambda n: {"images": FLOATS[n], "more": FLOATS[n]}, "decode returns more as well, which the model does"),
            (lambda n: {"images": FLOATS[n][:, : len(n)]}, "decode returns images as float32 [1, 1], float32 [3, 3],"),
            (lambda n: {"images": FLOATS[:1]}, "decode returns images as float32 [1, 10], float32 [1, 10], float32 ["),
        ],
    )
    def test_other_outputs_are_a_problem(self, found, problem):
        (one,) = compared(floats(), found)[0].problems
        assert one.startswith(problem)

    def test_endpoint_that_fails_is_named_with_its_batch(self):
        def found(numbers):
            if len(numbers) == 3:
                raise ValueError("shapes differ\n  in line 7")
            return {"images": FLOATS[numbers]}

        assert compared(floats(), found)[0].problems == ["decode fails at batch 3: ValueError: shapes differ"]


class TestRoundTrip:
    IMAGES = np.random.default_rng(0).integers(1, 255, (COUNT, 8, 8, 3), dtype=np.uint8)
    KINDS = {"real": IMAGES, "extreme/black": np.zeros((1, 8, 8, 3), np.uint8), "extreme/noise": IMAGES[:4]}

    def report(self, kept, lost):
        """The report of files that lose the images for which `lost` holds, of a model that keeps those of `kept`."""
        report = Report()
        cases = dict(self.KINDS)
        for name, images in self.KINDS.items():
            kind = name.removeprefix("extreme/")
            cases[f"kept/{kind}"] = np.array([kept(kind, number) for number in range(len(images))])
            cases[f"given_back/{kind}"] = np.ones(len(images), bool)

        def call(endpoint, arrays):
            if endpoint == "encode":
                return {"v": arrays["images"].astype(np.float32)}
            images = arrays["v"].astype(np.uint8)
            images[[lost(image) for image in images], 0, 0, 0] ^= 1
            return {"images": images}

        report.check_round_trip(call, cases)
        return report

    def test_counts_every_image_of_every_kind(self):
        report = self.report(lambda *_: True, lambda image: False)
        assert report.problems == []
        assert report.round_trip == {
            "real": {"images": COUNT, "identical": COUNT, "model": COUNT, "model_gives_back": COUNT},
            "black": {"images": 1, "identical": 1, "model": 1, "model_gives_back": 1},
            "noise": {"images": 4, "identical": 4, "model": 4, "model_gives_back": 4},
        }

    def test_one_lost_noise_image_of_the_model_excuses_no_other_image(self):
        # Whatever alpha is: what the model itself keeps, the files must keep.
        report = self.report(lambda kind, number: (kind, number) != ("noise", 1), lambda image: not image.any())
        assert report.problems == [
            "decode(encode): 1 of 1 black images differ (number 0) which the model itself gives back"
        ]

    def test_image_that_the_model_itself_loses_may_be_lost(self):
        lost = self.IMAGES[1]
        report = self.report(lambda kind, number: number != 1, lambda image: np.array_equal(image, lost))
        assert report.problems == []
        # Also one that it gives back, but not where its codes are moved.
        assert report.round_trip["noise"] == {"images": 4, "identical": 3, "model": 3, "model_gives_back": 4}
