use bitcoin::{Network, ScriptBuf};
use tempfile::TempDir;

use super::*;
use crate::bitcoind;

fn somebody() -> Address {
    let script = ScriptBuf::new_p2wsh(&ScriptBuf::new().wscript_hash());
    Address::from_script(&script, Network::Regtest).unwrap()
}

fn regtest(folder: &TempDir) -> Regtest {
    let bitcoind = bitcoind::locate(&mut |said| eprintln!("{said}")).unwrap();
    Regtest::start(&bitcoind, folder.path(), Reach::LOOPBACK).unwrap()
}

#[test]
fn a_chain_pays_mines_and_keeps_its_blocks_over_a_restart_and_a_kill() {
    let folder = TempDir::new().unwrap();
    let mut regtest = regtest(&folder);
    assert_eq!(regtest.chain().height().unwrap(), FIRST_BLOCKS);

    let amount = Amount::from_sat(123_456);
    let paid = regtest.chain().pay(&somebody(), amount).unwrap();
    assert_eq!(regtest.chain().mempool().unwrap(), [paid]);
    let block = regtest.chain().mine(1).unwrap();

    regtest.stop().unwrap();
    regtest.start_again().unwrap();
    assert_eq!(regtest.chain().best_block().unwrap(), block[0]);
    let transaction = regtest.chain().transaction(paid).unwrap();
    assert!(
        transaction
            .output
            .iter()
            .any(|output| output.value == amount)
    );
    assert_eq!(
        regtest.chain().fee(paid).unwrap().to_sat(),
        transaction.vsize() as u64 * 2
    );

    let pid = regtest.pid();
    regtest.kill().unwrap();
    assert!(regtest.chain().height().is_err());
    regtest.start_again().unwrap();
    assert_ne!(regtest.pid(), pid);
    assert!(regtest.chain().height().unwrap() >= FIRST_BLOCKS);
}

#[test]
fn the_faucet_pays_many_times_between_two_blocks_and_then_says_that_it_is_dry() {
    let folder = TempDir::new().unwrap();
    let regtest = regtest(&folder);
    let chain = regtest.chain();

    let many = (0..10).map(|_| chain.pay(&somebody(), Amount::from_sat(1_000)).unwrap());
    assert_eq!(many.count(), chain.mempool().unwrap().len());
    let too_much = chain
        .pay(&somebody(), Amount::from_sat(5_100_000_000))
        .unwrap_err();
    assert!(matches!(too_much, ChainError::Dry(_)), "{too_much}");
}

#[test]
fn a_reorganisation_takes_a_payment_back_into_the_mempool() {
    let folder = TempDir::new().unwrap();
    let regtest = regtest(&folder);
    let chain = regtest.chain();

    let paid = chain.pay(&somebody(), Amount::from_sat(1_000)).unwrap();
    let block = chain.mine(1).unwrap()[0];
    assert_eq!(chain.mempool().unwrap(), []);
    chain.invalidate(block).unwrap();
    assert_eq!(chain.mempool().unwrap(), [paid]);

    chain.mine_only(&[]).unwrap();
    chain.mine_only(&[]).unwrap();
    assert_eq!(
        (chain.mempool().unwrap(), chain.height().unwrap()),
        (vec![paid], FIRST_BLOCKS + 2)
    );
    let transaction = chain.transaction(paid).unwrap();
    chain.mine_only(&[transaction]).unwrap();
    assert_eq!(chain.mempool().unwrap(), []);
}
