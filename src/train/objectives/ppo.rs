//! Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) of texts that the policy wrote itself.

use super::{Loss, Objective, Scored};

/// `-1/M Σ_t min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t)` (Eq. 7), `r_t = π(y_t|…) / π_old(y_t|…)`, over the M tokens of a
/// rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct ClippedPolicy {
    /// Nats a target under the policy that wrote the texts.
    pub old: Vec<f32>,
    /// One advantage a target.
    pub advantages: Vec<f64>,
    /// How far a ratio may go before it stops to count.
    pub clip: f64,
}

impl Objective for ClippedPolicy {
    fn loss(&self, scored: &Scored<'_>) -> Loss {
        let mut loss = Loss::zero(scored.nll.len());
        let weight = (scored.nll.len().max(1) as f64).recip();
        for (token, (&nll, (&old, &advantage))) in
            scored.nll.iter().zip(self.old.iter().zip(&self.advantages)).enumerate()
        {
            let ratio = (f64::from(old) - f64::from(nll)).exp();
            let (free, clipped) = (
                ratio * advantage,
                ratio.clamp(1.0 - self.clip, 1.0 + self.clip) * advantage,
            );
            loss.value -= weight * free.min(clipped);
            if free <= clipped {
                // The ratio falls by itself for each nat that the token costs.
                loss.gradient[token] = weight * free;
            }
        }
        loss
    }
}

/// One text that the policy wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Episode {
    /// What the text is worth.
    pub reward: f64,
    /// Of each token: by how many nats it is likelier under the policy than under the reference.
    pub log_ratios: Vec<f64>,
}

/// The advantage of each token of each episode, in order, of groups of episodes with one prompt.
///
/// A token's reward is `-beta ln π_old(y_t)/π_ref(y_t)`, a sample of the divergence from the reference (Ziegler et al. 2019,
/// arXiv 1909.08593, Eq. 2), and the last token's also what the text is worth; its return is the sum from it to the end. The baseline is the
/// mean total return of the prompt's other episodes (leave one out; Ahmadian et al. 2024, arXiv 2402.14740, Eq. 7), which a token can't have
/// influenced. Last, all advantages together are shifted to mean zero and scaled to deviation one.
pub fn advantages(groups: &[Vec<Episode>], beta: f64) -> Vec<f64> {
    let mut all = Vec::new();
    for group in groups {
        let total = |episode: &Episode| episode.reward - beta * episode.log_ratios.iter().sum::<f64>();
        let totals: Vec<f64> = group.iter().map(total).collect();
        let sum: f64 = totals.iter().sum();
        for (episode, total) in group.iter().zip(&totals) {
            let baseline = match group.len() {
                1 => 0.0,
                count => (sum - total) / (count - 1) as f64,
            };
            let mut to_go = *total;
            for ratio in &episode.log_ratios {
                all.push(to_go - baseline);
                to_go += beta * ratio;
            }
        }
    }
    let count = all.len().max(1) as f64;
    let mean = all.iter().sum::<f64>() / count;
    let deviation = (all.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt();
    all.iter_mut()
        .for_each(|value| *value = (*value - mean) / (deviation + 1e-8));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(advantages: &[f64]) -> ClippedPolicy {
        ClippedPolicy {
            old: vec![1.0; advantages.len()],
            advantages: advantages.to_vec(),
            clip: 0.2,
        }
    }

    #[test]
    fn only_what_would_go_too_far_is_clipped() {
        // Likelier by a factor e^0.5, and less likely by the same; each with a good and a bad advantage.
        let nll = [0.5, 0.5, 1.5, 1.5];
        let loss = policy(&[1.0, -1.0, 1.0, -1.0]).loss(&Scored {
            nll: &nll,
            reference: &[],
            sets: &[],
        });
        let (up, down) = (0.5f64.exp(), (-0.5f64).exp());
        assert!((loss.value + (1.2 - up + down - 0.8) / 4.0).abs() < 1e-12);
        let want = [0.0, -up / 4.0, down / 4.0, 0.0];
        for (got, want) in loss.gradient.iter().zip(want) {
            assert!((got - want).abs() < 1e-12, "{got}, expected {want}");
        }
    }

    #[test]
    fn an_episode_is_compared_with_the_others_of_its_prompt() {
        let episode = |reward, tokens| Episode {
            reward,
            log_ratios: vec![0.0; tokens],
        };
        // Both prompts have a better and a worse text; that one prompt pays more altogether is nobody's merit.
        let groups = [
            vec![episode(1.0, 2), episode(0.0, 2)],
            vec![episode(11.0, 2), episode(10.0, 2)],
        ];
        let got = advantages(&groups, 0.1);
        for (got, want) in got.iter().zip([1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0]) {
            assert!((got - want).abs() < 1e-6, "{got}, expected {want}");
        }
    }

    #[test]
    fn straying_is_charged_to_the_tokens_from_where_it_happens_back() {
        let strayed = Episode {
            reward: 1.0,
            log_ratios: vec![0.0, 2.0, 0.0],
        };
        let stayed = Episode {
            reward: 1.0,
            log_ratios: vec![0.0; 3],
        };
        let got = advantages(&[vec![strayed, stayed]], 0.5);
        assert!(got[0] == got[1] && got[1] < got[2], "{got:?}");
    }
}
