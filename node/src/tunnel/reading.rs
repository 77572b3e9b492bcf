//! Running totals: the market's word, so that a meter's count is a session's count.

pub use bitmesh_market::session::Reading;
