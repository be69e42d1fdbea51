import pytest

from autoliver.training.course import Course, Stretch, Watch
from autoliver.training.options import TrainingOptions
from autoliver.training.progress import EpochLog
from autoliver.training.recipes import RECIPES, Recipe

SGD, SHORT, OMNIA = RECIPES["nnunet"], RECIPES["short"], RECIPES["omnia"]


def log(epoch: int, dice: float | None = None, loss: float | None = None) -> EpochLog:
    return EpochLog(
        epoch=epoch,
        step=10 * (epoch + 1),
        learning_rate=0.01,
        train_loss=loss,
        train_dice=None,
        validation_dice=None if dice is None else (dice, None),
        seconds=1.0,
        data_wait=0.0,
    )


def after(course: Course, options: TrainingOptions, *logs: EpochLog) -> Course:
    for entry in logs:
        course = course.after(entry, options, SGD, elapsed_s=float(entry.step))
    return course


def test_the_watch_is_a_running_mean_that_counts_epochs_since_its_best() -> None:
    watch, mean, best, waited = Watch(), 0.5, 0.5, 0
    watch = watch.after(log(0, 0.5))
    for epoch, dice in enumerate([0.7, 0.6, 0.1, 0.2, 0.8, 0.9, 0.9], start=1):
        watch = watch.after(log(epoch, dice))
        mean = 0.9 * mean + 0.1 * dice
        waited = 0 if mean > best else waited + 1
        best = max(best, mean)
        assert (watch.mean, watch.best) == (pytest.approx(mean), pytest.approx(best))
        assert watch.waited == waited
    assert watch.after(log(9)).waited == waited + 1


def test_without_held_out_cases_the_training_loss_is_watched() -> None:
    watch = Watch().after(log(0, loss=0.5)).after(log(1, loss=0.4))
    assert watch.waited == 0
    assert watch.after(log(2, loss=0.9)).waited == 1


def test_without_progress_the_rate_falls_from_where_it_is_to_its_end() -> None:
    options = TrainingOptions(epochs=200, iterations=10, patience=4)
    course = after(Course(), options, *(log(e, 0.5) for e in range(69)))
    assert course.stretch is not None
    # The first epoch set the mark, four more did not pass it; 5 epochs are the shortest way down.
    rate = 0.01 * (1 - 5 / 200) ** 0.9
    assert course.stretch == Stretch(first_step=50, steps=50, rate=pytest.approx(rate))
    rates = [course.rate(options, SGD, step=s, elapsed_s=0.0) for s in range(50, 100)]
    assert rates[:10] == [rate] * 10
    assert rates[-1] == pytest.approx(rate * 0.2**0.9)
    assert rates == sorted(rates, reverse=True)
    assert course.done(options, step=75, elapsed_s=0.0) == 0.5
    assert course.done(options, step=100, elapsed_s=0.0) == 1.0
    assert course.last_step(options) == 100


def test_a_late_cool_down_takes_a_tenth_of_the_epochs_so_far() -> None:
    options = TrainingOptions(epochs=1000, iterations=10, patience=3)
    rising = [log(e, e / 200) for e in range(117)]
    course = after(Course(), options, *rising, *(log(e, 0.0) for e in range(117, 120)))
    assert course.stretch is not None
    assert (course.stretch.first_step, course.stretch.steps) == (1200, 120)


def test_progress_and_a_near_end_leave_the_course_as_it_is() -> None:
    options = TrainingOptions(epochs=30, iterations=10, patience=4)
    assert after(Course(), options, *(log(e, e / 30) for e in range(30))).stretch is None
    late = [log(e, e / 30) for e in range(21)] + [log(e, 0.0) for e in range(21, 25)]
    assert after(Course(), options, *late).stretch is None  # 5 epochs are left in any case
    forever = options.replace(patience=None)
    assert after(Course(), forever, *(log(e, 0.5) for e in range(30))) == Course()


def test_a_time_budget_ends_a_cool_down_but_no_extension() -> None:
    options = TrainingOptions(epochs=100, iterations=10, hours=1.0, extensions=(5,))
    cooling = Course(stretch=Stretch(first_step=50, steps=100, rate=0.01))
    assert cooling.done(options, step=60, elapsed_s=1800.0) == pytest.approx(0.1)
    assert cooling.done(options, step=60, elapsed_s=3600.0) == 1.0
    extended = Course().extended(options, SGD, step=500)
    assert extended is not None
    assert extended.done(options, step=510, elapsed_s=4000.0) == pytest.approx(0.2)


@pytest.mark.parametrize("recipe", [SGD, SHORT], ids=["nnunet", "short"])
def test_an_extension_is_the_rest_of_a_training_planned_that_long(recipe: Recipe) -> None:
    options = TrainingOptions(epochs=30, iterations=10, extensions=(10, 20))
    longer = TrainingOptions(epochs=40, iterations=10)
    course = Course().extended(options, recipe, step=300)
    assert course is not None
    for step in range(300, 400):
        expected = Course().rate(longer, recipe, step=step, elapsed_s=0.0)
        found = course.rate(options, recipe, step=step, elapsed_s=0.0)
        assert found == pytest.approx(expected)
    assert course.last_step(options) == 400
    second = course.extended(options, recipe, step=400)
    assert second is not None
    assert second.last_step(options) == 600
    assert second.extended(options, recipe, step=600) is None


def test_an_extension_of_omnia_falls_from_its_next_rate_to_zero() -> None:
    options = TrainingOptions(epochs=30, iterations=10, schedule="omnia", extensions=(10,))
    course = Course().extended(options, OMNIA, step=300)
    assert course is not None
    rates = [course.rate(options, OMNIA, step=s, elapsed_s=0.0) for s in range(300, 400, 10)]
    assert rates[0] == pytest.approx(1e-3 * 0.95**30)
    assert rates[5] == pytest.approx(1e-3 * 0.95**30 * 0.5**0.9)
