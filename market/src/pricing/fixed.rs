//! The price the operator named, whatever the demand.

use super::{Pricing, Utilisation};
use crate::units::Price;

/// Always the same price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed(Price);

impl Fixed {
    /// Asks `price` from everybody at any time.
    #[must_use]
    pub const fn new(price: Price) -> Self {
        Self(price)
    }
}

impl Pricing for Fixed {
    fn price(&self, _: Utilisation) -> Price {
        self.0
    }
}
