//! stub
use super::ToxicityScorer;
use std::sync::Arc;
pub struct SimilarityScorer;
impl SimilarityScorer {
    pub fn new(_: Arc<ToxicityScorer>) -> Self {
        Self
    }
    pub fn score(&self, a: &str, b: &str) -> f32 {
        let g = |s: &str| {
            let c: Vec<char> = s.to_lowercase().chars().filter(|c| !c.is_whitespace()).collect();
            c.windows(3)
                .map(|w| w.iter().collect::<String>())
                .collect::<std::collections::HashSet<_>>()
        };
        let (x, y) = (g(a), g(b));
        let i = x.intersection(&y).count() as f32;
        2.0 * i / ((x.len() + y.len()).max(1) as f32)
    }
}
