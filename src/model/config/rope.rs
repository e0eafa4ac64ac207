//! Rotary frequencies, and the ways in which models that were stretched to longer texts depart from them.

/// How rotary frequencies `theta^(-2i / head_dim)` are changed.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All are divided by the factor (Chen et al. 2023).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: long waves are divided, short ones are kept, those between are blended.
    Llama3 {
        /// The divisor of long waves.
        factor: f64,
        /// Waves longer than `original_positions` divided by this are long.
        low_frequency_factor: f64,
        /// Waves shorter than `original_positions` divided by this are short.
        high_frequency_factor: f64,
        /// Positions that the model was first trained with.
        original_positions: f64,
    },
}

impl RopeScaling {
    /// The frequencies of a head of width `head_dim`, `head_dim / 2` of them. Single precision, as the reference implementations
    /// hold them.
    pub fn frequencies(&self, theta: f64, head_dim: usize) -> Vec<f32> {
        let scaled = |frequency: f64| match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_frequency_factor,
                high_frequency_factor,
                original_positions,
            } => {
                let wave = std::f64::consts::TAU / frequency;
                if wave < original_positions / high_frequency_factor {
                    frequency
                } else if wave > original_positions / low_frequency_factor {
                    frequency / factor
                } else {
                    let smooth = (original_positions / wave - low_frequency_factor)
                        / (high_frequency_factor - low_frequency_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        };
        (0..head_dim / 2)
            .map(|i| scaled(theta.powf(-2.0 * i as f64 / head_dim as f64)) as f32)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_waves_are_stretched_and_short_ones_kept() {
        let plain = RopeScaling::None.frequencies(500_000.0, 128);
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_positions: 8192.0,
        };
        let scaled = scaling.frequencies(500_000.0, 128);
        assert_eq!(plain[..29], scaled[..29]);
        assert_eq!(plain[63] / 8.0, scaled[63]);
        assert!(scaled[32] < plain[32] && scaled[32] > plain[32] / 8.0);
        let linear = RopeScaling::Linear { factor: 4.0 }.frequencies(500_000.0, 128);
        assert!((linear[7] * 4.0 / plain[7] - 1.0).abs() < 1e-6);
    }
}
