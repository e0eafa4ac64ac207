//! How good an adapter is, and whether it may replace another.
