//! Names under a buyer's control: a real name server, whose answers change, and a real resolver.

use std::{
    collections::HashMap,
    env, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    sync::{Arc, Mutex},
};

use bitmesh_tests::{PATIENCE, World, wait};
use futures::FutureExt as _;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, UdpSocket},
};

use crate::accounts::{MB, buy, buyer, seller};

/// Set in a process that was started in namespaces of its own: the file that is its resolv.conf.
const RESOLV: &str = "BITMESH_TEST_RESOLV_CONF";

/// Where this test runs again: its own network and its own view of the files, with a resolver that
/// it may set. `readlink` finds the file behind a link into /run, which is empty by then.
const SCRIPT: &str = "mount -t tmpfs run /run && file=$(readlink -m /etc/resolv.conf) && \
    { [ -e \"$file\" ] || { mkdir -p \"$(dirname \"$file\")\" && touch \"$file\"; }; } && \
    mount --bind \"$BITMESH_TEST_RESOLV_CONF\" \"$file\" && ip link set lo up && exec \"$0\" \"$@\"";

/// What to do where neither is permitted.
const HINT: &str = "this test needs namespaces, and this user may not make them; run it as root: sudo \
    --preserve-env=PATH,CARGO_HOME,RUSTUP_HOME cargo test --package bitmesh-tests names";

/// An address of the internet that this test has for itself.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 14);

/// What curl ends with if its proxy refuses.
const PROXY_REFUSED: i32 = 97;

/// Runs the test `name` again in namespaces of its own. Returns whether it has.
fn ran_inside(name: &str) -> bool {
    if env::var_os(RESOLV).is_some() {
        return false;
    }
    let folder = tempfile::tempdir().unwrap();
    let resolv = folder.path().join("resolv.conf");
    fs::write(&resolv, "").unwrap();
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let output = command
        .args(["--net", "--mount", "sh", "-c", SCRIPT])
        .arg(env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(RESOLV, &resolv)
        .env("TMPDIR", folder.path())
        .output()
        .unwrap_or_else(|error| panic!("{HINT}\n(unshare: {error})"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{HINT}");
    true
}

/// A name server. Each name has a list of answers; the last one is given for ever.
#[derive(Clone, Default)]
struct NameServer {
    names: Arc<Mutex<HashMap<String, Answers>>>,
}

struct Answers {
    answers: Vec<Vec<IpAddr>>,
    asked: usize,
}

impl NameServer {
    async fn start(at: IpAddr) -> Self {
        let socket = UdpSocket::bind((at, 53)).await.unwrap();
        fs::write(env::var_os(RESOLV).unwrap(), format!("nameserver {at}\n")).unwrap();
        let server = Self::default();
        let answering = server.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                if let Some(answer) = answering.answer(&buffer[..len]) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        server
    }

    fn set(&self, name: &str, answers: &[&[IpAddr]]) {
        let answers = Answers {
            answers: answers.iter().map(|answer| answer.to_vec()).collect(),
            asked: 0,
        };
        let mut names = self.names.lock().unwrap();
        names.insert(name.to_owned(), answers);
    }

    /// How often the addresses of a name were asked for.
    fn asked(&self, name: &str) -> usize {
        self.names.lock().unwrap()[name].asked
    }

    /// The answer to one question (RFC 1035, section 4).
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        const A: [u8; 2] = [0, 1];
        let mut labels = Vec::new();
        let mut at = 12;
        loop {
            let len = usize::from(*query.get(at)?);
            at += 1;
            if len == 0 {
                break;
            }
            labels.push(std::str::from_utf8(query.get(at..at + len)?).ok()?);
            at += len;
        }
        let question = query.get(12..at + 4)?;
        let addresses = match self.names.lock().unwrap().get_mut(&labels.join(".")) {
            Some(name) if question[at - 12..at - 10] == A => {
                let last = name.answers.len() - 1;
                name.asked += 1;
                name.answers[(name.asked - 1).min(last)].clone()
            }
            Some(_) | None => Vec::new(),
        };
        let count = u8::try_from(addresses.len()).unwrap();
        let mut answer = query[..2].to_vec();
        answer.extend([0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
        answer.extend(question);
        for address in addresses {
            let IpAddr::V4(address) = address else {
                return None;
            };
            // The name of the question, type A, class IN, good for no time at all, four bytes.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
            answer.extend(address.octets());
        }
        Some(answer)
    }
}

/// Fetches a page by its name through bob's proxy, which leaves the name to the seller. Returns what
/// curl ends with and the page.
async fn get(world: &World, name: &str) -> (i32, String) {
    let bob = world.node("bob");
    let (namespace, proxy) = (bob.namespace().unwrap().to_owned(), bob.proxy());
    let url = format!("http://{name}/");
    let curl = tokio::task::spawn_blocking(move || {
        Command::new("ip")
            .args(["netns", "exec", &namespace, "curl", "--silent"])
            .args(["--max-time", "20", "--socks5-hostname", &proxy.to_string()])
            .arg(url)
            .output()
            .expect("network namespaces were made with it")
    });
    let output = curl.await.unwrap();
    let code = output.status.code().unwrap();
    assert_ne!(
        code, 127,
        "this test needs curl; on Debian: apt-get install curl"
    );
    (code, String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A web server that says one word.
async fn greeter(at: SocketAddr) {
    let listener = TcpListener::bind(at).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let page = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\npublic";
            let _ = socket.write_all(page).await;
            let _ = socket.shutdown().await;
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_turns_to_the_sellers_network_never_leads_there() {
    if ran_inside("names::a_name_that_turns_to_the_sellers_network_never_leads_there") {
        return;
    }
    let world = World::start_in_namespaces([seller("alice"), buyer("bob")]).await;
    // The seller's router: its resolver, and a page for nobody outside.
    let router = world.web().address().ip();
    let names = NameServer::start(router).await;
    let private = TcpListener::bind((router, 80)).await.unwrap();
    let address = format!("{PUBLIC}/32");
    let added = Command::new("ip")
        .args(["address", "add", &address, "dev", "lo"])
        .status();
    assert!(added.unwrap().success());
    greeter((PUBLIC, 80).into()).await;
    let public = IpAddr::V4(PUBLIC);
    names.set("evil.example", &[&[public], &[router]]);
    names.set("both.example", &[&[router, public]]);
    names.set("back.example", &[&[router]]);
    buy(&world, "bob", 10 * MB).await;

    // One question for one connection: a second would have led to the router.
    assert_eq!(get(&world, "evil.example").await, (0, "public".to_owned()));
    assert_eq!(names.asked("evil.example"), 1);
    assert_eq!(get(&world, "both.example").await, (0, "public".to_owned()));
    assert_eq!(get(&world, "back.example").await.0, PROXY_REFUSED);
    // The seller believes an answer for half a minute; then it asks again, and is told of the router.
    let rebound = wait::until_async(PATIENCE, "the name to be asked for again", || async {
        let (code, page) = get(&world, "evil.example").await;
        match names.asked("evil.example") {
            1 => assert_eq!((code, &*page), (0, "public")),
            _ => assert_eq!((code, &*page), (PROXY_REFUSED, "")),
        }
        (names.asked("evil.example") > 1).then_some(())
    });
    rebound.await.unwrap_or_else(|late| panic!("{late}"));

    // What was connected waits there, so this needs no time to pass.
    assert!(private.accept().now_or_never().is_none());
}
