//! What a seller asks for.

use crate::units::Price;

mod fixed;

pub use fixed::Fixed;

/// How much of a seller's capacity is sold and paid for, in 1/65536.
///
/// Paid use only: what strangers merely ask for must not move a price, or anybody could move a
/// rival's for free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Utilisation(u32);

impl Utilisation {
    /// Nothing is sold.
    pub const NONE: Self = Self(0);
    /// Everything is sold.
    pub const FULL: Self = Self(1 << 16);

    /// `sold` of `capacity`, in any one unit. No capacity counts as sold out.
    #[must_use]
    pub fn of(sold: u64, capacity: u64) -> Self {
        if sold >= capacity {
            return Self::FULL;
        }
        let share = (u128::from(sold) << 16) / u128::from(capacity);
        Self(u32::try_from(share).unwrap_or(Self::FULL.0))
    }

    /// The share in 1/65536.
    #[must_use]
    pub const fn q16(self) -> u32 {
        self.0
    }
}

/// How a seller sets its price.
pub trait Pricing {
    /// The price to offer in public and to quote at this utilisation.
    fn price(&self, utilisation: Utilisation) -> Price;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utilisation_is_a_share_that_never_passes_one() {
        assert_eq!(Utilisation::of(0, 8), Utilisation::NONE);
        assert_eq!(Utilisation::of(4, 8).q16(), 1 << 15);
        assert_eq!(Utilisation::of(9, 8), Utilisation::FULL);
        assert_eq!(Utilisation::of(0, 0), Utilisation::FULL);
        assert!(Utilisation::of(u64::MAX - 1, u64::MAX) < Utilisation::FULL);
    }

    #[test]
    fn a_fixed_price_does_not_move() {
        let price = Price::from_msat_per_gb(120_000);
        let pricing = Fixed::new(price);
        assert_eq!(pricing.price(Utilisation::NONE), price);
        assert_eq!(pricing.price(Utilisation::FULL), price);
    }
}
