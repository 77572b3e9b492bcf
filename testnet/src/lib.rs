//! A local BitMesh network: a real bitcoind on regtest and real node processes.
