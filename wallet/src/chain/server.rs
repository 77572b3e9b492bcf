//! What servers have in common that answer for a bitcoind behind them.

use bitcoin::{Amount, BlockHash, FeeRate, Network};

use super::bitcoind::{self, Refusal, sort_refusal};
use super::wire::Place;
use super::{Accepted, BroadcastError, ChainError, Rejection};

/// The most that is believed of an estimate, in sat/vB: twice what was ever paid.
const HIGHEST_ESTIMATE: f64 = 10_000.0;

/// Characters of a server's words that are kept.
pub(super) const WORDS: usize = 300;

/// Refuses a server whose genesis block is another network's.
pub(super) fn check_genesis(
    place: &Place,
    network: Network,
    found: BlockHash,
) -> Result<(), ChainError> {
    let genesis = |network| bitcoin::constants::genesis_block(network).block_hash();
    if found == genesis(network) {
        return Ok(());
    }
    let all = [
        Network::Bitcoin,
        Network::Testnet,
        Network::Testnet4,
        Network::Signet,
        Network::Regtest,
    ];
    let named = all.into_iter().find(|it| genesis(*it) == found);
    Err(ChainError::WrongNetwork {
        node: place.to_string(),
        expected: network,
        found: named.map_or_else(|| found.to_string(), |network| network.to_string()),
    })
}

/// Sorts a refusal by the words of the bitcoind behind a server, which it passes on.
pub(super) fn refused(words: &str) -> Result<Accepted, BroadcastError> {
    match sort_refusal(words) {
        Refusal::InMempool => Ok(Accepted::InMempool),
        Refusal::InChain => Ok(Accepted::InChain),
        Refusal::Rejected(reason) => Err(Rejection {
            reason,
            detail: words.chars().take(WORDS).collect(),
        }
        .into()),
    }
}

/// An estimate in sat per virtual byte, rounded up to whole sat per 1,000 weight. `None` for what
/// cannot be one. The only fractions in the wallet: servers write them so.
pub(super) fn feerate_of(per_vb: f64) -> Option<FeeRate> {
    if !(per_vb > 0.0 && per_vb <= HIGHEST_ESTIMATE) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and bounded above"
    )]
    let per_kvb = (per_vb * 1_000.0).ceil() as u64;
    Some(bitcoind::feerate_of(Amount::from_sat(per_kvb)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_is_rounded_up_and_nonsense_is_none() {
        assert_eq!(feerate_of(1.0), FeeRate::from_sat_per_vb(1));
        assert_eq!(feerate_of(87.882).unwrap().to_sat_per_kwu(), 21_971);
        assert_eq!(feerate_of(1.003_7).unwrap().to_sat_per_kwu(), 251);
        for nonsense in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert_eq!(feerate_of(nonsense), None, "{nonsense}");
        }
    }
}
