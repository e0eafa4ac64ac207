//! L2-regularised logistic regression on sparse rows by dual coordinate descent.
//!
//! Yu, Huang and Lin, "Dual coordinate descent methods for logistic regression and maximum entropy models",
//! Machine Learning 85 (2011). Each step solves its one-variable problem exactly, in the logit of the dual variable,
//! where Newton's method has a slope of at least one and can't leave the domain.

/// Sparse rows, one after the other.
#[derive(Default)]
pub struct Rows {
    features: Vec<(u32, f32)>,
    ends: Vec<usize>,
}

impl Rows {
    /// Appends a feature to the row being built.
    pub fn push(&mut self, index: u32, value: f32) {
        self.features.push((index, value));
    }

    /// Closes the row being built.
    pub fn end_row(&mut self) {
        self.ends.push(self.features.len());
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The features of a row.
    pub fn row(&self, at: usize) -> &[(u32, f32)] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.features[start..self.ends[at]]
    }

    /// Multiplies each feature by a factor of its own and drops those whose factor is 0.
    pub fn rescale(&mut self, factor: impl Fn(u32) -> f32) {
        let (mut kept, mut start) = (0, 0);
        for end in &mut self.ends {
            for at in start..*end {
                let (index, value) = self.features[at];
                let value = value * factor(index);
                if value != 0.0 {
                    self.features[kept] = (index, value);
                    kept += 1;
                }
            }
            (start, *end) = (*end, kept);
        }
        self.features.truncate(kept);
    }
}

/// A linear decision function.
pub struct Linear {
    /// One weight a feature.
    pub weights: Vec<f32>,
    /// Added to every margin.
    pub bias: f32,
}

impl Linear {
    /// The margin of a row.
    pub fn margin(&self, row: &[(u32, f32)]) -> f32 {
        self.bias + dot(&self.weights, row)
    }
}

fn dot(weights: &[f32], row: &[(u32, f32)]) -> f32 {
    row.iter().map(|&(index, value)| weights[index as usize] * value).sum()
}

/// An example: which row, its class, and its cost (how much it may cost to get it wrong).
#[derive(Clone, Copy)]
pub struct Example {
    /// Index into the rows.
    pub row: usize,
    /// Toxic or not.
    pub positive: bool,
    /// C of the example, above 0.
    pub cost: f32,
}

/// Fits for a number of passes over the examples, in an order that `seed` decides.
pub fn fit(rows: &Rows, examples: &[Example], dimensions: usize, passes: usize, seed: u64) -> Linear {
    // The bias is a feature of this value, so that it is hardly regularised.
    const BIAS: f32 = 3.0;
    let mut weights = vec![0f32; dimensions];
    let mut bias = 0f32;
    let mut logits: Vec<f32> = vec![-6.0; examples.len()];
    let squares: Vec<f32> = examples
        .iter()
        .map(|e| BIAS * BIAS + rows.row(e.row).iter().map(|f| f.1 * f.1).sum::<f32>())
        .collect();
    let mut order: Vec<usize> = (0..examples.len()).collect();
    let mut random = Random(seed);
    for (example, &logit) in examples.iter().zip(&logits) {
        let step = example.sign() * example.cost * sigmoid(logit);
        bias += step * BIAS;
        rows.row(example.row)
            .iter()
            .for_each(|&(index, value)| weights[index as usize] += step * value);
    }
    for _ in 0..passes {
        random.shuffle(&mut order);
        for &at in &order {
            let example = examples[at];
            let row = rows.row(example.row);
            let gradient = example.sign() * (bias * BIAS + dot(&weights, row));
            let old = example.cost * sigmoid(logits[at]);
            let mut logit = logits[at].clamp(-30.0, 30.0);
            for _ in 0..20 {
                let share = sigmoid(logit);
                let residual = logit + squares[at] * (example.cost * share - old) + gradient;
                let newton = residual / (1.0 + squares[at] * example.cost * share * (1.0 - share));
                logit -= newton.clamp(-4.0, 4.0);
                if newton.abs() < 1e-3 {
                    break;
                }
            }
            logits[at] = logit;
            let step = example.sign() * (example.cost * sigmoid(logit) - old);
            bias += step * BIAS;
            row.iter()
                .for_each(|&(index, value)| weights[index as usize] += step * value);
        }
    }
    Linear {
        weights,
        bias: bias * BIAS,
    }
}

impl Example {
    fn sign(self) -> f32 {
        if self.positive { 1.0 } else { -1.0 }
    }
}

/// 1 / (1 + exp(-x)).
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// SplitMix64: enough for shuffling and sampling, and the same on every machine.
pub struct Random(pub u64);

impl Random {
    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound.max(1) as u64) as usize
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separable_classes_are_separated() {
        let mut rows = Rows::default();
        for at in 0..40u32 {
            rows.push(at % 2, 1.0);
            rows.push(2 + at % 5, 0.5);
            rows.end_row();
        }
        let examples: Vec<Example> = (0..40)
            .map(|row| Example {
                row,
                positive: row % 2 == 1,
                cost: 4.0,
            })
            .collect();
        let model = fit(&rows, &examples, 8, 20, 1);
        for example in &examples {
            assert_eq!(model.margin(rows.row(example.row)) > 0.0, example.positive);
        }
    }

    #[test]
    fn rescaling_drops_features_of_factor_zero() {
        let mut rows = Rows::default();
        rows.push(0, 1.0);
        rows.push(1, 2.0);
        rows.end_row();
        rows.push(1, 3.0);
        rows.end_row();
        rows.rescale(|index| if index == 0 { 0.0 } else { 2.0 });
        assert_eq!(rows.row(0), [(1, 4.0)]);
        assert_eq!(rows.row(1), [(1, 6.0)]);
    }
}
