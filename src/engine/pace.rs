//! What a step costs, how often drafts are right, and from both how long drafts should be.

use std::time::Duration;

use super::draft::Trust;

/// What an observation weighs after each later one.
const KEPT: f64 = 0.98;
/// Draft tokens of each sequence before anything is measured.
const UNMEASURED: usize = 4;
/// No draft is thought to be surer than this.
const SUREST: f64 = 0.98;

/// Measured costs and rates of an engine.
#[derive(Debug)]
pub(super) struct Pace {
    most: usize,
    fit: Fit,
    rates: [Rate; Trust::COUNT],
}

/// Seconds as a linear function of rows: least squares over steps, of which later ones weigh more.
#[derive(Debug, Default)]
struct Fit {
    count: f64,
    rows: f64,
    seconds: f64,
    rows_rows: f64,
    rows_seconds: f64,
}

/// How often something was right, of late.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    right: f64,
    tried: f64,
}

/// What might be drafted for a sequence in a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// Continuations that would go on together.
    pub members: usize,
    /// Most draft tokens: what is expected, or what is left to generate.
    pub limit: usize,
    pub trust: Trust,
    /// The sequence's own rate.
    pub rate: Rate,
}

impl Slot {
    /// What yields no token and takes no draft.
    pub(super) const NONE: Self = Self {
        members: 0,
        limit: 0,
        trust: Trust::Begun,
        rate: Rate { right: 0.0, tried: 1.0 },
    };
}

impl Pace {
    /// With at most so many draft tokens a sequence and step.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            fit: Fit::default(),
            // Rewriting copies most of its source.
            rates: [0.8, 0.85, 0.5, 0.2].map(|rate| Rate::new(rate, 4.0)),
        }
    }

    /// A rate to begin a sequence with.
    pub(super) fn prior(&self) -> Rate {
        Rate::new(self.rates[Trust::Following as usize].mean(), 4.0)
    }

    /// A step with so many rows took so long.
    pub(super) fn stepped(&mut self, rows: usize, took: Duration) {
        self.fit.add(rows as f64, took.as_secs_f64());
    }

    /// The first draft token of a sequence was right or not.
    pub(super) fn tried(&mut self, trust: Trust, right: bool) {
        let rate = &mut self.rates[trust as usize];
        rate.fade();
        rate.add(right);
    }

    /// How many draft tokens for each sequence give the most tokens a second, in a step that has `rows` rows without them.
    ///
    /// A draft token's worth is the chance that it is reached and right; the sum of worths over the time of the step is largest when
    /// tokens are taken in the order of their worth for as long as one brings more a second than the step as a whole.
    pub(super) fn plan(&self, slots: &[Slot], rows: usize) -> Vec<usize> {
        let mut lengths = vec![0; slots.len()];
        let limit = |slot: &Slot| slot.limit.min(self.most);
        let Some((fixed, row)) = self.fit.line() else {
            for (length, slot) in lengths.iter_mut().zip(slots) {
                *length = limit(slot).min(UNMEASURED);
            }
            return lengths;
        };
        let mut worths = Vec::new();
        for (index, slot) in slots.iter().enumerate() {
            let mut worth = slot.members as f64;
            for place in 0..limit(slot) {
                let rate = match place {
                    0 if slot.trust != Trust::Following => self.rates[slot.trust as usize].mean(),
                    _ => slot.rate.mean(),
                };
                worth *= rate.min(SUREST);
                worths.push((worth, index));
            }
        }
        // A stable sort: of a sequence's tokens the nearer comes first.
        worths.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let mut tokens: f64 = slots.iter().map(|slot| slot.members as f64).sum();
        let mut seconds = fixed + row * rows as f64;
        for (worth, index) in worths {
            if worth * seconds <= row * tokens {
                break;
            }
            lengths[index] += 1;
            tokens += worth;
            seconds += row;
        }
        lengths
    }
}

impl Fit {
    fn add(&mut self, rows: f64, seconds: f64) {
        for sum in [
            &mut self.count,
            &mut self.rows,
            &mut self.seconds,
            &mut self.rows_rows,
            &mut self.rows_seconds,
        ] {
            *sum *= KEPT;
        }
        self.count += 1.0;
        self.rows += rows;
        self.seconds += seconds;
        self.rows_rows += rows * rows;
        self.rows_seconds += rows * seconds;
    }

    /// Seconds of a step without rows, and of each row; `None` while all steps were alike.
    fn line(&self) -> Option<(f64, f64)> {
        let spread = self.count * self.rows_rows - self.rows * self.rows;
        if self.count < 4.0 || spread < 0.5 * self.count * self.count {
            return None;
        }
        let mean = self.seconds / self.count;
        let row = (self.count * self.rows_seconds - self.rows * self.seconds) / spread;
        // Noise may make a row cost nothing, or a step less than nothing.
        let mean_rows = self.rows / self.count;
        let row = row.clamp(0.01 * mean / mean_rows, mean / mean_rows);
        Some((mean - row * mean_rows, row))
    }
}

impl Rate {
    fn new(mean: f64, weight: f64) -> Self {
        Self {
            right: mean * weight,
            tried: weight,
        }
    }

    fn mean(self) -> f64 {
        self.right / self.tried
    }

    pub(super) fn add(&mut self, right: bool) {
        self.tried += 1.0;
        self.right += f64::from(u8::from(right));
    }

    fn fade(&mut self) {
        self.right *= KEPT;
        self.tried *= KEPT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(fixed: f64, row: f64) -> Pace {
        let mut pace = Pace::new(16);
        for rows in [1, 20, 5, 1, 8, 3] {
            pace.stepped(rows, Duration::from_secs_f64(fixed + row * rows as f64));
        }
        pace
    }

    fn slot(rate: f64, members: usize) -> Slot {
        Slot {
            members,
            limit: 16,
            trust: Trust::Following,
            rate: Rate::new(rate, 1.0),
        }
    }

    /// Expected tokens a second of a plan.
    fn speed(fixed: f64, row: f64, slots: &[Slot], lengths: &[usize]) -> f64 {
        let tokens: f64 = slots
            .iter()
            .zip(lengths)
            .map(|(slot, &length)| {
                let rate = slot.rate.mean().min(SUREST);
                slot.members as f64 * (0..=length as i32).map(|place| rate.powi(place)).sum::<f64>()
            })
            .sum();
        tokens / (fixed + row * (slots.len() + lengths.iter().sum::<usize>()) as f64)
    }

    #[test]
    fn the_line_is_found_again() {
        let (fixed, row) = pace(3e-3, 4e-4).fit.line().unwrap();
        assert!((fixed - 3e-3).abs() < 1e-8 && (row - 4e-4).abs() < 1e-8);
    }

    #[test]
    fn no_other_lengths_are_faster() {
        for (fixed, row) in [(3e-3, 4e-4), (3e-3, 3e-3), (1e-4, 1e-3), (1e-2, 1e-5)] {
            for rates in [(0.9, 0.5), (0.97, 0.8), (0.2, 0.1)] {
                let slots = [slot(rates.0, 1), slot(rates.1, 3)];
                let lengths = pace(fixed, row).plan(&slots, 2);
                let planned = speed(fixed, row, &slots, &lengths);
                for first in 0..=16 {
                    for second in 0..=16 {
                        let other = speed(fixed, row, &slots, &[first, second]);
                        assert!(other <= planned * 1.000_1, "{lengths:?} against {first}, {second}");
                    }
                }
            }
        }
    }

    #[test]
    fn costly_rows_and_full_batches_shorten_drafts() {
        let alone = |fixed, row| pace(fixed, row).plan(&[slot(0.85, 1)], 1)[0];
        assert!(alone(3e-3, 1e-4) > alone(3e-3, 1e-3));
        assert_eq!(alone(0.0, 1e-3), 0, "where rows are all the cost, drafts bring nothing");
        let many = vec![slot(0.85, 1); 32];
        let pace = pace(3e-3, 4e-4);
        assert!(pace.plan(&many, 32)[31] < pace.plan(&many[..1], 1)[0]);
    }

    #[test]
    fn the_setting_is_a_bound_and_zero_turns_drafts_off() {
        let mut bounded = pace(1e-2, 1e-5);
        bounded.most = 3;
        assert_eq!(bounded.plan(&[slot(0.9, 1)], 1), [3]);
        assert_eq!(Pace::new(0).plan(&[slot(0.9, 1)], 1), [0]);
        let short = Slot {
            limit: 2,
            ..slot(0.9, 1)
        };
        assert_eq!(Pace::new(16).plan(&[short], 1), [2]);
    }
}
