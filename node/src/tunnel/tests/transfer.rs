//! Bytes arrive as they were sent, and both ends count them alike.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::frame::OPEN_COST;
use super::fixture::*;

const MIB: usize = 1024 * 1024;

async fn download(len: usize) {
    let server = file_server(len).await;
    let tunnel = Tunnel::start().await;

    let mut socket = tunnel.connect(server).await;
    let (got, hash) = hash_of_rest(&mut socket).await;
    drop(socket);

    assert_eq!((got, hash), (len, hash_of_file(len)));
    let (buyer, seller) = tunnel.quiescent().await;
    assert_eq!(buyer, seller);
    assert_eq!(seller.up.get(), OPEN_COST);
    assert_eq!(seller.down.get(), len as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_of_one_byte_arrives_and_is_counted_alike() {
    download(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_of_a_mebibyte_arrives_and_is_counted_alike() {
    download(MIB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_of_a_hundred_mebibytes_arrives_and_is_counted_alike() {
    download(100 * MIB).await;
}

async fn upload(len: usize) {
    let server = server(LOCAL, move |mut socket| async move {
        let (got, hash) = hash_of_rest(&mut socket).await;
        assert_eq!(got, len);
        socket.write_all(&hash).await.unwrap();
    })
    .await;
    let tunnel = Tunnel::start().await;

    let mut socket = tunnel.connect(server).await;
    let mut sent = 0;
    while sent < len {
        let chunk = file(sent, (len - sent).min(64 * 1024));
        socket.write_all(&chunk).await.unwrap();
        sent += chunk.len();
    }
    socket.shutdown().await.unwrap();
    let mut hash = [0; 32];
    socket.read_exact(&mut hash).await.unwrap();
    assert_eq!(
        socket.read(&mut [0]).await.unwrap(),
        0,
        "the server's end arrives too"
    );

    assert_eq!(hash, hash_of_file(len));
    let (buyer, seller) = tunnel.quiescent().await;
    assert_eq!(buyer, seller);
    assert_eq!(seller.up.get(), OPEN_COST + len as u64);
    assert_eq!(seller.down.get(), 32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_one_byte_arrives_and_is_counted_alike() {
    upload(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_a_mebibyte_arrives_and_is_counted_alike() {
    upload(MIB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_a_hundred_mebibytes_arrives_and_is_counted_alike() {
    upload(100 * MIB).await;
}
