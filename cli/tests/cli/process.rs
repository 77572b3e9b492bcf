//! The program as a process: streams, exit codes, JSON.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use bitmesh_node::control::{
    Command as Asked, ErrorCode, Event,
    api::{self, Mode},
};
use serde_json::Value;

use crate::canned::{self, Daemon};

/// The program, in an environment of its own: no home, no colour, nothing inherited.
fn bitmesh(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitmesh"));
    command.env_clear().env("HOME", home).stdin(Stdio::null());
    command
}

fn run(daemon: &Daemon, args: &[&str]) -> Output {
    bitmesh(daemon.dir())
        .arg("--api")
        .arg(&daemon.socket)
        .args(args)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn json(output: &Output) -> Value {
    let text = stdout(output);
    assert_eq!(text.lines().count(), 1, "one object on one line: {text}");
    serde_json::from_str(text).unwrap()
}

/// Every command that needs only a daemon, as it is typed.
const COMMANDS: [&[&str]; 36] = [
    &["status"],
    &["id"],
    &["peers"],
    &[
        "peers",
        "add",
        "/ip4/192.0.2.7/tcp/6366/p2p/12D3KooWExample",
    ],
    &[
        "sell",
        "start",
        "--price",
        "120sat/GB",
        "--rate",
        "20Mbit/s",
    ],
    &["sell", "stop"],
    &["sell", "pause"],
    &["sell", "price", "90sat/GB"],
    &["sell", "price"],
    &["sell", "limits", "--leases", "8"],
    &["offers"],
    &["buy", "2GB", "--max-price", "200sat/GB"],
    &["buy", "2GB", "--dry-run"],
    &["leases"],
    &["lease", "show", "7f3a"],
    &["lease", "extend", "7f3a", "1GB"],
    &["lease", "close", "7f3a"],
    &["usage"],
    &["wallet", "balance"],
    &["wallet", "receive"],
    &["wallet", "history"],
    &["wallet", "send", "bcrt1qexample", "50000sat", "--dry-run"],
    &["wallet", "backup", "--yes"],
    &["channels"],
    &["channels", "show", "90bc"],
    &["channels", "open", "12D3KooWS1p", "12D3KooWAbC", "20000sat"],
    &["channels", "open", "12D3KooWS1p", "--dry-run"],
    &["channels", "topup", "12D3KooWS1p", "20000sat"],
    &["channels", "close", "90bc", "--dry-run"],
    &["channels", "close", "--all", "--dry-run"],
    &["channels", "rollover", "90bc", "--dry-run"],
    &["channels", "refund", "90bc"],
    &["earnings"],
    &["earnings", "--audit"],
    &["config", "get"],
    &["config", "set", "mesh.listen", "/ip4/0.0.0.0/tcp/6366"],
];

#[test]
fn every_command_answers_in_text_and_in_one_json_object() {
    let daemon = Daemon::start(canned::answer);
    for args in COMMANDS {
        let text = run(&daemon, args);
        assert!(text.status.success(), "{args:?}: {}", stderr(&text));
        assert!(!text.stdout.is_empty(), "{args:?} says nothing");
        assert!(!stdout(&text).contains('\x1b'), "{args:?} colours a pipe");

        let object = run(&daemon, &[&["--json"], args].concat());
        assert!(object.status.success(), "{args:?}: {}", stderr(&object));
        assert!(json(&object).is_object(), "{args:?}");
    }
}

#[test]
fn the_json_of_a_command_is_the_reply_of_the_api() {
    let daemon = Daemon::start(canned::answer);
    let asked = |args: &[&str]| json(&run(&daemon, &[&["--json"], args].concat()));
    assert_eq!(
        asked(&["status"]),
        serde_json::to_value(canned::status()).unwrap()
    );
    assert_eq!(
        asked(&["lease", "show", "7f3a"]),
        serde_json::to_value(canned::lease()).unwrap()
    );
    assert_eq!(
        asked(&["earnings"]),
        serde_json::to_value(canned::earnings()).unwrap()
    );
    assert_eq!(
        asked(&["buy", "2GB"]),
        serde_json::to_value(canned::purchase()).unwrap()
    );
    insta::assert_json_snapshot!("json_of_a_purchase", asked(&["buy", "2GB"]));
    insta::assert_json_snapshot!("json_of_the_status", asked(&["status"]));
    insta::assert_json_snapshot!("json_of_the_earnings", asked(&["earnings"]));
}

#[test]
fn an_audit_that_finds_something_says_both_figures_and_exits_with_one() {
    let answer = |agrees| {
        move |_| {
            Ok(api::Earnings {
                audit: Some(canned::audit(agrees)),
                ..canned::earnings()
            }
            .into())
        }
    };
    let agreeing = run(&Daemon::start(answer(true)), &["earnings", "--audit"]);
    assert_eq!(agreeing.status.code(), Some(0));
    assert!(stdout(&agreeing).contains("everything agrees"));

    let daemon = Daemon::start(answer(false));
    let found = run(&daemon, &["earnings", "--audit"]);

    assert_eq!(found.status.code(), Some(1));
    for said in ["lease 7f3a", " 176079 msat", " 176080 msat", " -1 msat"] {
        assert!(stdout(&found).contains(said), "{said}");
    }
    assert!(stderr(&found).contains("the books do not agree"));
    let object = run(&daemon, &["--json", "earnings", "--audit"]);
    assert_eq!(object.status.code(), Some(1));
    assert_eq!(json(&object)["audit"]["disagreements"][0]["difference"], -1);
}

#[test]
fn the_entries_come_as_csv_with_a_header_and_crlf() {
    let daemon = Daemon::start(canned::answer);

    let table = run(&daemon, &["earnings", "--csv"]);

    assert!(table.status.success(), "{}", stderr(&table));
    let text = stdout(&table);
    let lines: Vec<&str> = text.split_terminator("\r\n").collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(
        lines.iter().all(|line| line.split(',').count() == 11),
        "{text}"
    );
    insta::assert_snapshot!("entries_as_csv", text.replace("\r\n", "\n"));
    let both = run(&daemon, &["--json", "earnings", "--csv"]);
    assert_eq!(both.status.code(), Some(2));
}

#[test]
fn each_kind_of_failure_has_its_exit_code() {
    let home = tempfile::tempdir().unwrap();
    for code in ErrorCode::ALL {
        let daemon = Daemon::refusing(code);
        let output = run(&daemon, &["--json", "offers"]);
        assert_eq!(
            output.status.code(),
            Some(i32::from(code.exit_code())),
            "{code:?}"
        );
        let error = &json(&output)["error"];
        assert_eq!(error["code"], serde_json::to_value(code).unwrap());
        assert_eq!(error["message"], "it was refused");
        assert_eq!(
            stderr(&output),
            "error: it was refused\nhint: do something else\n"
        );
    }

    let exit = |args: &[&str]| {
        let output = bitmesh(home.path()).args(args).output().unwrap();
        (output.status.code().unwrap(), stderr(&output).to_owned())
    };
    assert_eq!(exit(&["--version"]).0, 0);
    assert_eq!(exit(&["buy"]).0, 2, "clap's own");
    assert_eq!(exit(&["buy", "500sat", "--budget", "1sat"]).0, 2, "our own");
    let (code, text) = exit(&["status"]);
    assert_eq!(code, 3);
    assert!(
        text.contains("cannot reach the BitMesh daemon at "),
        "{text}"
    );
    assert!(
        text.contains("hint: start it with \"bitmesh up\""),
        "{text}"
    );
    assert_eq!(exit(&["daemon"]).0, 5, "no node is there");

    let ailing = Daemon::start(|_| Ok(canned::ailing().into()));
    assert_eq!(run(&ailing, &["status"]).status.code(), Some(0));
    let checked = run(&ailing, &["status", "--check"]);
    assert_eq!(checked.status.code(), Some(10));
    assert!(stdout(&checked).contains("does not answer"));
}

#[test]
fn a_socket_that_belongs_to_others_is_not_authorised() {
    let home = tempfile::tempdir().unwrap();
    let closed = home.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let socket = closed.join("bitmesh.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    // Root may open anything; then there is nothing to see here.
    if fs::read_dir(&closed).is_ok() {
        return;
    }
    let output = bitmesh(home.path())
        .arg("--api")
        .arg(&socket)
        .arg("status")
        .output()
        .unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn usage_errors_are_json_too_where_json_is_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let output = bitmesh(home.path())
        .args(["buy", "--json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = &json(&output)["error"];
    assert_eq!(error["code"], "usage");
    assert_eq!(
        error["message"],
        "the following required arguments were not provided: <QUANTITY>"
    );
    assert!(stderr(&output).contains("Usage: bitmesh buy"));
}

#[test]
fn what_is_typed_is_what_is_asked() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let daemon = Daemon::start(move |command| {
        seen.lock().unwrap().push(command.clone());
        canned::answer(command)
    });
    let line = "buy 2GB --max-price 200sat/GB --budget 300sat --for 1h30m --min-rate 8Mbit/s \
                --mode postpaid --region EU --from 12D3KooWS1 --wait 5m";
    let output = run(&daemon, &line.split_whitespace().collect::<Vec<_>>());
    assert!(output.status.success(), "{}", stderr(&output));
    let Some(Asked::Buy(buy)) = asked.lock().unwrap().pop() else {
        panic!("nothing was bought")
    };
    assert_eq!(buy.bytes, Some(2_000_000_000));
    assert_eq!(buy.budget_msat, Some(300_000));
    assert_eq!(buy.max_price_msat_per_gb, Some(200_000));
    assert_eq!(buy.term_s, Some(5_400));
    assert_eq!(buy.min_rate_bytes_per_s, Some(1_000_000));
    assert_eq!(buy.mode, Mode::Postpaid);
    assert_eq!(buy.region.as_deref(), Some("EU"));
    assert_eq!(buy.from.as_deref(), Some("12D3KooWS1"));
    assert_eq!((buy.wait_s, buy.dry_run), (300, false));

    let output = run(&daemon, &["buy", "500sat"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let Some(Asked::Buy(buy)) = asked.lock().unwrap().pop() else {
        panic!("nothing was bought")
    };
    assert_eq!((buy.bytes, buy.budget_msat), (None, Some(500_000)));
    assert_eq!(buy.max_first_msat, None);

    let output = run(&daemon, &["buy", "0.00001BTC", "--max-first", "800sat"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let Some(Asked::Buy(buy)) = asked.lock().unwrap().pop() else {
        panic!("nothing was bought")
    };
    assert_eq!(buy.budget_msat, Some(1_000_000));
    assert_eq!(buy.max_first_msat, Some(800_000));
    assert!(asked.lock().unwrap().iter().all(|it| !is_dry_run(it)));
}

fn is_dry_run(command: &Asked) -> bool {
    matches!(command, Asked::Buy(buy) if buy.dry_run)
}

/// Runs the program on a terminal of its own, on which `typed` is typed. Returns what the terminal
/// shows, and the exit code.
fn on_terminal(daemon: &Daemon, args: &[&str], typed: &str) -> (String, Option<i32>) {
    let line = format!(
        "{} --api {} {}",
        env!("CARGO_BIN_EXE_bitmesh"),
        daemon.socket.display(),
        args.join(" ")
    );
    let mut terminal = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("HOME", daemon.dir())
        .env("TERM", "dumb")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test needs script; on Debian: apt-get install bsdutils");
    let mut keys = terminal.stdin.take().unwrap();
    keys.write_all(typed.as_bytes()).unwrap();
    let output = terminal.wait_with_output().unwrap();
    drop(keys);
    let shown = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    (shown, output.status.code())
}

/// As [`on_terminal`], but each answer is typed only when its question is there.
fn answering_on_terminal(
    daemon: &Daemon,
    args: &[&str],
    answers: &[(&str, &str)],
) -> (String, Option<i32>) {
    let line = format!("{} {}", env!("CARGO_BIN_EXE_bitmesh"), args.join(" "));
    let mut terminal = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("HOME", daemon.dir())
        .env("TERM", "dumb")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test needs script; on Debian: apt-get install bsdutils");
    let mut keys = terminal.stdin.take().unwrap();
    let mut screen = terminal.stdout.take().unwrap();
    let mut shown = Vec::new();
    for (question, answer) in answers {
        while !String::from_utf8_lossy(&shown).contains(question) {
            let mut some = [0; 512];
            match screen.read(&mut some).unwrap() {
                0 => break,
                read => shown.extend(&some[..read]),
            }
        }
        // Nobody may read any more, where it ended without asking.
        let _ = keys.write_all(answer.as_bytes());
    }
    screen.read_to_end(&mut shown).unwrap();
    let code = terminal.wait().unwrap().code();
    drop(keys);
    (String::from_utf8_lossy(&shown).replace('\r', ""), code)
}

#[test]
fn on_a_terminal_a_new_channel_is_shown_and_asked_about_before_it_is_opened() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let daemon = Daemon::start(move |command| {
        seen.lock().unwrap().push(command.clone());
        canned::answer(command)
    });
    let bought = || -> Vec<_> {
        let all = std::mem::take(&mut *asked.lock().unwrap());
        let buys = all.into_iter().filter_map(|command| match command {
            Asked::Buy(buy) => Some(buy),
            _ => None,
        });
        buys.collect()
    };

    let (shown, code) = on_terminal(&daemon, &["buy", "2GB"], "n\n");
    assert_eq!(code, Some(2), "{shown}");
    assert!(shown.contains("Go on? [Y/n]"), "{shown}");
    for part in [
        "740 sat of them to be paid at once",
        "about 30 days",
        "warning:",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(bought().iter().all(|buy| buy.dry_run), "{shown}");

    let (shown, code) = on_terminal(&daemon, &["buy", "2GB"], "\n");
    assert_eq!(code, Some(0), "{shown}");
    let buys = bought();
    assert_eq!(buys.len(), 2);
    assert!(buys[0].dry_run && !buys[1].dry_run);
    assert_eq!(
        buys[1].max_first_msat,
        Some(740_000),
        "no more than was shown"
    );

    for willing in ["--yes", "--no-input", "--json"] {
        let (shown, code) = on_terminal(&daemon, &["buy", "2GB", willing], "");
        assert_eq!(code, Some(0), "{shown}");
        assert_eq!(bought().len(), 1, "{willing}");
    }
}

#[test]
fn nothing_is_spent_without_consent() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let daemon = Daemon::start(move |command| {
        seen.lock().unwrap().push(command.clone());
        canned::answer(command)
    });
    let spent = || {
        let spending = |command: &Asked| match command {
            Asked::SendCoins(send) => !send.dry_run,
            Asked::CloseChannel(close) => !close.dry_run,
            Asked::CloseAllChannels(close) => !close.dry_run,
            Asked::RevealWords(_) => true,
            _ => false,
        };
        asked
            .lock()
            .unwrap()
            .iter()
            .filter(|command| spending(command))
            .count()
    };
    let commands: [&[&str]; 4] = [
        &["wallet", "send", "bcrt1qexample", "50000sat"],
        &["channels", "close", "90bc"],
        &["channels", "close", "--all"],
        &["wallet", "backup"],
    ];
    for args in commands {
        let refused = run(&daemon, args);
        assert_eq!(refused.status.code(), Some(2), "{args:?}");
        assert!(
            stderr(&refused).contains("hint: give --yes to accept"),
            "{args:?}"
        );
        assert!(refused.stdout.is_empty(), "{args:?}");
        assert_eq!(spent(), 0, "{args:?}");
    }
    for (number, args) in commands.iter().enumerate() {
        let done = run(&daemon, &[*args, &["--yes"]].concat());
        assert!(done.status.success(), "{args:?}: {}", stderr(&done));
        assert_eq!(spent(), number + 1, "{args:?}");
    }
    let sent = asked
        .lock()
        .unwrap()
        .iter()
        .find_map(|command| match command {
            Asked::SendCoins(send) if !send.dry_run => Some(send.clone()),
            _ => None,
        });
    let rate = sent.unwrap().feerate_sat_per_kvb;
    assert_eq!(
        rate,
        Some(2_500),
        "it is sent at the fee rate that was shown"
    );
}

#[test]
fn channels_are_opened_at_the_fee_rate_and_the_first_payment_that_were_shown() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&asked);
    let daemon = Daemon::start(move |command| {
        record.lock().unwrap().push(command.clone());
        canned::answer(command)
    });

    let opened = run(
        &daemon,
        &["channels", "open", "12D3KooWS1p", "12D3KooWAbC", "30000sat"],
    );
    assert!(opened.status.success(), "{}", stderr(&opened));

    let asked = asked.lock().unwrap();
    let [Asked::OpenChannels(plan), Asked::OpenChannels(open)] = &asked[..] else {
        panic!("{asked:?}");
    };
    assert!(plan.dry_run && !open.dry_run);
    assert_eq!(open.peers, ["12D3KooWS1p", "12D3KooWAbC"]);
    assert_eq!(open.capacity_sat, Some(30_000));
    assert_eq!(open.feerate_sat_per_kvb, Some(1_000));
    assert_eq!(open.max_first_msat, Some(1_480_000));
}

#[test]
fn an_amount_that_is_given_twice_or_makes_no_sense_opens_nothing() {
    let daemon = Daemon::start(canned::answer);
    for amounts in [
        ["20000sat", "30000sat"],
        ["0sat", "12D3KooWS1p"],
        ["1.5sat", "12D3KooWS1p"],
    ] {
        let refused = run(
            &daemon,
            &[&["channels", "open", "12D3KooWAbC"][..], &amounts].concat(),
        );

        assert_eq!(refused.status.code(), Some(2), "{amounts:?}");
        assert!(refused.stdout.is_empty(), "{amounts:?}");
    }
}

#[test]
fn a_watcher_gets_one_json_object_a_line_until_its_lease_is_closed() {
    let daemon = Daemon::start(canned::answer);
    let mut child = bitmesh(daemon.dir())
        .arg("--api")
        .arg(&daemon.socket)
        .args(["--json", "usage", "--watch", "7f3a"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["lease"], canned::LEASE);
    assert_eq!(next()["state"], "paused");

    let mut line = canned::usage_line(&canned::lease());
    line.billed_msat = 200_000;
    daemon.events.send(Event::Usage { usage: line }).unwrap();
    assert_eq!(next()["billed_msat"], 200_000);

    daemon
        .events
        .send(Event::LeaseClosed {
            lease: canned::lease(),
        })
        .unwrap();
    assert_eq!(next()["state"], "closed");
    assert!(child.wait().unwrap().success());
}

#[test]
fn events_end_with_the_daemon_and_an_unknown_one_is_refused() {
    let daemon = Daemon::start(canned::answer);
    let refused = run(&daemon, &["events", "comet_seen"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused).contains("lease_opened"),
        "{}",
        stderr(&refused)
    );

    let child = bitmesh(daemon.dir())
        .arg("--api")
        .arg(&daemon.socket)
        .args(["--json", "events", "block_connected"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while daemon
        .events
        .send(Event::BlockConnected { height: 7 })
        .is_err()
    {
        std::thread::yield_now();
    }
    daemon.stop.cancel();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(stdout(&output).starts_with(r#"{"type":"block_connected","height":7}"#));
}

#[test]
fn ctrl_c_ends_a_wait_with_130() {
    let daemon = Daemon::start(canned::answer);
    let mut child = bitmesh(daemon.dir())
        .arg("--api")
        .arg(&daemon.socket)
        .args(["--json", "usage", "--watch"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Its first line says that it is waiting.
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let last = stdout.lines().map_while(Result::ok).last().unwrap();
    let last: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(last["error"]["code"], "interrupted");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    assert_eq!(stderr(&ended), "interrupted\n");
}

#[test]
fn a_reader_who_has_seen_enough_is_no_failure() {
    let daemon = Daemon::start(canned::answer);
    let mut child = bitmesh(daemon.dir())
        .arg("--api")
        .arg(&daemon.socket)
        .arg("offers")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_call_as_it_stands_goes_through() {
    let daemon = Daemon::start(canned::answer);
    let output = run(
        &daemon,
        &["api", "post", "/v1/buy", r#"{"bytes":1,"dry_run":true}"#],
    );
    assert_eq!(
        json(&output),
        serde_json::to_value(canned::dry_purchase()).unwrap()
    );
    let document = run(&daemon, &["api", "GET", "/openapi.json"]);
    let document: Value = serde_json::from_slice(&document.stdout).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let wrong = run(&daemon, &["api", "POST", "/v1/buy", r#"{"byte":1}"#]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(
        stderr(&wrong).contains("unknown field `byte`"),
        "{}",
        stderr(&wrong)
    );
}

#[test]
fn down_waits_until_the_daemon_is_gone() {
    let daemon = Daemon::start(canned::answer);
    let output = run(&daemon, &["down"]);
    assert_eq!(stdout(&output), "stopped; 1 lease was closed\n");
    assert!(!daemon.socket.exists());
    assert_eq!(run(&daemon, &["down"]).status.code(), Some(3));
}

#[test]
fn init_makes_a_node_once_and_keeps_its_words_to_itself() {
    let home = tempfile::tempdir().unwrap();
    let datadir = home.path().join("node");
    let init = |args: &[&str]| {
        bitmesh(home.path())
            .arg("--datadir")
            .arg(&datadir)
            .args(["--json", "--no-input", "init"])
            .args(args)
            .output()
            .unwrap()
    };
    let made = init(&["--network", "regtest", "--set", "sell.price=90 sat/GB"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let said = stderr(&made).to_owned();
    let made = json(&made);
    assert!(made["node"].as_str().unwrap().starts_with("12D3KooW"));
    let journal = datadir.join("journal");
    assert!(said.contains(journal.to_str().unwrap()), "{said}");
    let words_file = made["words_file"].as_str().unwrap();
    let words = fs::read_to_string(words_file).unwrap();
    let mode = fs::metadata(words_file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o400);
    assert_eq!(words.split_whitespace().count(), 12);
    let all = made.to_string();
    assert!(!all.contains(words.trim()), "the words are not printed");

    let config = fs::read_to_string(made["config"].as_str().unwrap()).unwrap();
    assert!(config.contains("price = \"90 sat/GB\""), "{config}");
    assert!(config.contains("network = \"regtest\""), "{config}");

    let again = init(&[]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(json(&again)["error"]["code"], "conflict");
    assert_eq!(fs::read_to_string(words_file).unwrap(), words);
}

#[test]
fn init_restores_the_same_node_from_words_on_standard_input() {
    let home = tempfile::tempdir().unwrap();
    let init = |name: &str, words: Option<&str>| {
        let mut command = bitmesh(home.path());
        command
            .arg("--datadir")
            .arg(home.path().join(name))
            .args(["--json", "init"]);
        if words.is_some() {
            command
                .args(["--words-file", "-", "--birth-height", "800000"])
                .stdin(Stdio::piped());
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        if let Some(words) = words {
            child
                .stdin
                .take()
                .unwrap()
                .write_all(words.as_bytes())
                .unwrap();
        }
        child.wait_with_output().unwrap()
    };
    let made = json(&init("first", None));
    let words = fs::read_to_string(made["words_file"].as_str().unwrap()).unwrap();
    let restored = json(&init("second", Some(&words.to_uppercase())));
    assert_eq!(restored["node"], made["node"]);
    assert_eq!(restored["restored"], true);

    let wrong = init("third", Some("one two three"));
    assert_eq!(wrong.status.code(), Some(2));
    assert!(!home.path().join("third").exists(), "nothing is left of it");
}

#[test]
fn settings_are_changed_in_the_file_while_no_daemon_runs() {
    let home = tempfile::tempdir().unwrap();
    let config = |args: &[&str]| {
        bitmesh(home.path())
            .arg("config")
            .args(args)
            .output()
            .unwrap()
    };
    let changed = config(&["set", "sell.price", "90 sat/GB"]);
    assert!(changed.status.success(), "{}", stderr(&changed));
    assert_eq!(stdout(&config(&["get", "sell.price"])), "90 sat/GB\n");
    assert!(stdout(&config(&["check"])).starts_with("ok "));

    let slip = config(&["set", "sell.prise", "1 sat/GB"]);
    assert_eq!(slip.status.code(), Some(5));
    assert!(
        stderr(&slip).contains("did you mean sell.price?"),
        "{}",
        stderr(&slip)
    );

    let file = home.path().join(".config/bitmesh/config.toml");
    assert_eq!(
        stdout(&config(&["path", "config"])).trim_end(),
        file.to_str().unwrap()
    );
    fs::write(&file, "nonsense = 1\n").unwrap();
    let bad = config(&["check"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(stderr(&bad).contains("nonsense"), "{}", stderr(&bad));
    // The network alone is still read, so that a running daemon can be found and stopped.
    let down = || bitmesh(home.path()).arg("down").output().unwrap();
    assert_eq!(down().status.code(), Some(3));

    fs::write(&file, "network = \"signet\"\n[sell\nprice = 1\n").unwrap();
    let down = down();
    assert_eq!(down.status.code(), Some(3), "{}", stderr(&down));
    assert!(
        stderr(&down).contains("bitmesh-signet.sock"),
        "{}",
        stderr(&down)
    );
    let bad = config(&["check"]);
    assert_eq!(bad.status.code(), Some(2));
    for part in [file.to_str().unwrap(), "line 2", "hint: mend the file"] {
        assert!(stderr(&bad).contains(part), "{part}: {}", stderr(&bad));
    }
    let set = config(&["set", "sell.price", "1 sat/GB"]);
    assert_eq!(set.status.code(), Some(2));
    assert!(
        stderr(&set).contains(file.to_str().unwrap()),
        "{}",
        stderr(&set)
    );
}

#[test]
fn help_of_a_command_is_what_its_flag_prints() {
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| bitmesh(home.path()).args(args).output().unwrap();
    let help = run(&["help", "wallet", "send"]);
    assert!(help.status.success(), "{}", stderr(&help));
    assert_eq!(stdout(&help), stdout(&run(&["wallet", "send", "--help"])));
    assert!(stdout(&run(&["help"])).contains("Sell:"));
    assert_eq!(run(&["help", "moon"]).status.code(), Some(5));
}

#[test]
fn completions_and_manual_pages_are_made() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = bitmesh(home.path())
            .args(["completions", shell])
            .output()
            .unwrap();
        assert!(script.status.success());
        assert!(stdout(&script).contains("max-price"), "{shell}");
    }
    let page = bitmesh(home.path())
        .args(["man", "wallet", "send"])
        .output()
        .unwrap();
    assert!(
        stdout(&page).contains(".TH bitmesh-wallet-send 1"),
        "{}",
        stdout(&page)
    );
    assert!(stdout(&page).contains("50000sat"), "the examples are in it");
    let folder = home.path().join("man");
    let all = bitmesh(home.path())
        .args(["man", "--all"])
        .arg(&folder)
        .output()
        .unwrap();
    assert!(all.status.success());
    for name in [
        "bitmesh.1",
        "bitmesh-buy.1",
        "bitmesh-wallet-send.1",
        "bitmesh-testnet-demo.1",
    ] {
        assert!(folder.join(name).exists(), "{name}");
    }
    assert_eq!(
        bitmesh(home.path())
            .args(["man", "moon"])
            .output()
            .unwrap()
            .status
            .code(),
        Some(5)
    );
}

/// A node of its own with a daemon, which is stopped however the test ends.
struct Node {
    home: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let node = Self {
            home: tempfile::tempdir().unwrap(),
        };
        let made = node.run(&[
            "init",
            "--network",
            "regtest",
            "--set",
            "mesh.listen=/ip4/127.0.0.1/tcp/0",
            "--set",
            "mesh.mdns.enabled=false",
            "--set",
            "chain.bitcoind.url=http://127.0.0.1:1",
        ]);
        assert!(made.status.success(), "{}", stderr(&made));
        node
    }

    fn run(&self, args: &[&str]) -> Output {
        bitmesh(self.home.path()).args(args).output().unwrap()
    }

    fn pid(&self) -> u64 {
        json(&self.run(&["status", "--json"]))["pid"]
            .as_u64()
            .unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.run(&["down"]);
    }
}

#[test]
fn a_daemon_is_started_once_found_killed_and_started_again() {
    let node = Node::new();
    let up = node.run(&["up", "--json"]);
    assert!(up.status.success(), "{}", stderr(&up));
    assert_eq!(json(&up)["started"], true);
    let pid = node.pid();

    let again = node.run(&["up", "--json"]);
    assert_eq!(json(&again)["started"], false);
    let second = node.run(&["daemon"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains(&format!("another daemon (process {pid})")));

    // No bitcoind answers: it runs, and says what is wrong.
    let checked = node.run(&["status", "--check", "--json"]);
    assert_eq!(checked.status.code(), Some(10));
    assert!(!json(&checked)["problems"].as_array().unwrap().is_empty());

    let process = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    while rustix::process::test_kill_process(process).is_ok() {
        std::thread::yield_now();
    }
    assert_eq!(
        node.run(&["status"]).status.code(),
        Some(3),
        "its socket is still there"
    );
    let up = node.run(&["up", "--json"]);
    assert_eq!(json(&up)["started"], true, "{}", stderr(&up));
    assert_ne!(node.pid(), pid);

    let down = node.run(&["down"]);
    assert_eq!(stdout(&down), "stopped\n");
    assert_eq!(node.run(&["down"]).status.code(), Some(3));
}

#[test]
fn settings_of_a_running_daemon_are_its_own_and_survive_it() {
    let node = Node::new();
    assert!(node.run(&["up"]).status.success());
    let priced = node.run(&["sell", "price", "77sat/GB", "--json"]);
    assert_eq!(json(&priced)["price_msat_per_gb"], 77_000);
    let shown = node.run(&["config", "get", "sell.price", "--json"]);
    assert_eq!(json(&shown)["values"][0]["origin"], "file");
    let listen = node.run(&[
        "config",
        "set",
        "mesh.listen",
        "/ip4/127.0.0.1/tcp/0",
        "--json",
    ]);
    assert!(json(&listen)["restart_needed"].is_boolean());
    let slip = node.run(&["config", "set", "sell.prise", "1 sat/GB"]);
    assert_eq!(slip.status.code(), Some(5), "{}", stderr(&slip));
    assert!(node.run(&["down"]).status.success());
    assert_eq!(
        stdout(&node.run(&["config", "get", "sell.price"])),
        "77 sat/GB\n"
    );
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let node = Node::new();
    let words = node
        .home
        .path()
        .join(".local/share/bitmesh/regtest/words.txt");
    fs::set_permissions(&words, fs::Permissions::from_mode(0o644)).unwrap();
    let up = node.run(&["up"]);
    assert_eq!(up.status.code(), Some(1));
    assert!(
        stderr(&up).contains("may be read by others"),
        "{}",
        stderr(&up)
    );
    assert!(
        stderr(&up).contains("hint: check the data directory"),
        "{}",
        stderr(&up)
    );
}

#[test]
fn a_port_that_is_taken_is_named_with_what_to_do() {
    let node = Node::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let listen = format!("/ip4/127.0.0.1/tcp/{port}");
    let set = node.run(&["config", "set", "mesh.listen", &listen]);
    assert!(set.status.success(), "{}", stderr(&set));

    let up = node.run(&["up"]);

    assert_eq!(up.status.code(), Some(1));
    for part in [&listen[..], "set mesh.listen", "regtest.log"] {
        assert!(stderr(&up).contains(part), "{part}: {}", stderr(&up));
    }
}

#[test]
fn words_under_a_passphrase_open_with_it_alone_and_a_wrong_one_changes_nothing() {
    let node = Node::new();
    let file = |name: &str, text: &str| {
        let path = node.home.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (first, second) = (file("first", "correct horse\n"), file("second", "battery"));
    let words = stdout(&node.run(&["config", "path", "words"]))
        .trim()
        .to_owned();
    let code = |output: &Output| output.status.code();

    let set = node.run(&[
        "wallet",
        "passphrase",
        "set",
        "--passphrase-file",
        &first,
        "--json",
    ]);
    assert!(set.status.success(), "{}", stderr(&set));
    assert_eq!(json(&set)["sealed"], true);
    let sealed = fs::read_to_string(&words).unwrap();
    assert!(sealed.starts_with("bitmesh sealed words 1\n"), "{sealed}");

    let unasked = node.run(&["up", "--json"]);
    assert_eq!(code(&unasked), Some(2), "{}", stderr(&unasked));
    assert!(stderr(&unasked).contains("BITMESH_PASSPHRASE_FILE"));
    let wrong = node.run(&["up", "--passphrase-file", &second, "--json"]);
    assert_eq!(code(&wrong), Some(4), "{}", stderr(&wrong));
    assert_eq!(json(&wrong)["error"]["code"], "not_authorised");
    assert!(stderr(&wrong).contains("nothing is lost"));
    let again = node.run(&["wallet", "passphrase", "set", "--passphrase-file", &second]);
    assert_eq!(code(&again), Some(1), "{}", stderr(&again));
    let backup = node.home.path().join("backup");
    let backup = backup.to_str().unwrap();
    assert_eq!(code(&node.run(&["backup", "create", backup])), Some(2));
    assert_eq!(fs::read_to_string(&words).unwrap(), sealed);

    let up = node.run(&["up", "--passphrase-file", &first, "--json"]);
    assert!(up.status.success(), "{}", stderr(&up));
    let busy = node.run(&[
        "wallet",
        "passphrase",
        "remove",
        "--passphrase-file",
        &first,
    ]);
    assert_eq!(code(&busy), Some(1));
    assert!(
        stderr(&busy).contains("another daemon"),
        "{}",
        stderr(&busy)
    );
    let arguments = fs::read(format!("/proc/{}/cmdline", node.pid())).unwrap();
    let environment = fs::read(format!("/proc/{}/environ", node.pid())).unwrap();
    for told in [arguments, environment] {
        assert!(!String::from_utf8_lossy(&told).contains("correct horse"));
    }
    // The daemon has the words open, and does not show them to whoever reaches its socket.
    let shown =
        |file: &[&str]| node.run(&[&["wallet", "backup", "--yes", "--json"], file].concat());
    assert_eq!(code(&shown(&[])), Some(2));
    let wrong = shown(&["--passphrase-file", &second]);
    assert_eq!(json(&wrong)["error"]["code"], "not_authorised");
    let call = ["api", "POST", "/v1/wallet/backup", r#"{"confirm":true}"#];
    let past_it = node.run(&call);
    assert_eq!(code(&past_it), Some(4), "{}", stderr(&past_it));
    assert!(
        stderr(&past_it).contains("bitmesh wallet backup"),
        "{}",
        stderr(&past_it)
    );
    let right = shown(&["--passphrase-file", &first]);
    assert_eq!(json(&right)["words"].as_array().unwrap().len(), 12);
    assert!(node.run(&["down"]).status.success());

    let change = |old: &str| {
        let change = ["wallet", "passphrase", "change", "--passphrase-file", old];
        node.run(&[&change[..], &["--new-passphrase-file", &second]].concat())
    };
    assert_eq!(code(&change(&second)), Some(4));
    let changed = change(&first);
    assert!(changed.status.success(), "{}", stderr(&changed));
    let made = node.run(&["backup", "create", backup, "--passphrase-file", &second]);
    assert!(made.status.success(), "{}", stderr(&made));

    let whole = fs::read(&words).unwrap();
    fs::set_permissions(&words, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&words, &whole[..whole.len() - 1]).unwrap();
    let cut = node.run(&["up", "--passphrase-file", &second]);
    assert_eq!(code(&cut), Some(1));
    assert!(stderr(&cut).contains("cut or damaged"), "{}", stderr(&cut));
    fs::write(&words, &whole).unwrap();
    let removed = node.run(&[
        "wallet",
        "passphrase",
        "remove",
        "--passphrase-file",
        &second,
    ]);
    assert!(removed.status.success(), "{}", stderr(&removed));
    assert_eq!(fs::read_to_string(&words).unwrap().split(' ').count(), 12);
    let up = node.run(&["up", "--json"]);
    assert!(up.status.success(), "{}", stderr(&up));
}

#[test]
fn on_a_terminal_a_passphrase_is_asked_for_twice_and_not_shown() {
    let daemon = Daemon::start(canned::answer);
    let datadir = daemon.dir().join("sealed");
    let init = |second: &str| {
        let datadir = datadir.to_str().unwrap();
        let args = [
            "--datadir",
            datadir,
            "init",
            "--network",
            "regtest",
            "--passphrase",
        ];
        let answers = [
            ("New passphrase: ", "correct horse\n"),
            ("The same again: ", second),
        ];
        answering_on_terminal(&daemon, &args, &answers)
    };
    let words = datadir.join("words.txt");

    let (shown, code) = init("\x03");
    assert_eq!(code, Some(130), "{shown}");
    let (shown, code) = init("correct hearse\n");
    assert_eq!(code, Some(2), "{shown}");
    assert!(shown.contains("the two passphrases differ"), "{shown}");
    assert!(!words.exists());

    let (shown, code) = init("correct horse\n");
    assert_eq!(code, Some(0), "{shown}");
    assert!(!shown.contains("horse"), "{shown}");
    assert!(shown.contains("under your passphrase"), "{shown}");
    let sealed = fs::read_to_string(&words).unwrap();
    assert!(sealed.starts_with("bitmesh sealed words 1\n"), "{sealed}");
}

#[test]
fn a_whole_journal_needs_no_repair_and_one_in_use_gets_none() {
    let node = Node::new();
    let up = node.run(&["up", "--json"]);
    assert!(up.status.success(), "{}", stderr(&up));
    let journal = stdout(&node.run(&["config", "path", "journal"])).to_owned();
    let whole = fs::read(journal.trim_end()).unwrap();

    let check = node.run(&["journal", "check"]);
    let busy = node.run(&["journal", "repair", "--yes"]);
    assert!(node.run(&["down"]).status.success());
    let idle = node.run(&["journal", "repair", "--json"]);

    assert!(check.status.success(), "{}", stderr(&check));
    assert!(stdout(&check).contains("whole"), "{}", stdout(&check));
    assert_eq!(busy.status.code(), Some(1));
    assert!(
        stderr(&busy).contains("another daemon"),
        "{}",
        stderr(&busy)
    );
    assert!(idle.status.success(), "{}", stderr(&idle));
    assert_eq!(json(&idle)["damaged"], false);
    assert!(json(&idle)["kept_at"].is_null());
    assert_eq!(fs::read(journal.trim_end()).unwrap(), whole);
}

#[test]
fn a_damaged_journal_is_named_with_what_to_do() {
    let node = Node::new();
    let journal = stdout(&node.run(&["config", "path", "journal"])).to_owned();
    fs::write(journal.trim_end(), "no journal\n").unwrap();
    let up = node.run(&["up"]);
    assert_eq!(up.status.code(), Some(1));
    let log = "regtest.log)";
    for part in [journal.trim_end(), "copy the whole data directory", log] {
        assert!(stderr(&up).contains(part), "{part}: {}", stderr(&up));
    }
}

#[test]
fn a_network_of_no_nodes_or_too_many_is_a_slip_of_the_command_line() {
    let home = tempfile::tempdir().unwrap();
    for nodes in ["0", "101"] {
        let up = bitmesh(home.path())
            .args(["testnet", "up", "--nodes", nodes])
            .output()
            .unwrap();
        assert_eq!(up.status.code(), Some(2), "{}", stderr(&up));
        assert!(stderr(&up).contains("1..=100"), "{}", stderr(&up));
    }
}

/// The program, with a temporary folder of its own and this as its bitcoind.
fn testnet(home: &Path, bitcoind: &Path, args: &[&str]) -> Command {
    let mut command = bitmesh(home);
    command
        .env("TMPDIR", home)
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("BITCOIND_EXE", bitcoind)
        .arg("testnet")
        .args(args);
    command
}

#[test]
fn a_network_that_does_not_come_up_says_why_once() {
    let home = tempfile::tempdir().unwrap();
    let up = testnet(home.path(), Path::new("/bin/true"), &["up", "--json"])
        .output()
        .unwrap();
    assert_eq!(up.status.code(), Some(1));
    let error = &json(&up)["error"];
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("/bin/true is not a bitcoind"), "{message}");
    let hint = error["hint"].as_str().unwrap();
    assert!(hint.contains("BITCOIND_EXE="), "{hint}");
    assert_eq!(
        stderr(&up).matches("no usable bitcoind").count(),
        1,
        "{}",
        stderr(&up)
    );
}

#[test]
fn a_network_that_is_interrupted_while_it_comes_up_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    // Says that it is one, and never answers.
    let (bitcoind, pid_file) = (home.path().join("bitcoind"), home.path().join("pid"));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = -version ] && exec echo 'Bitcoin Core daemon version v29.0.0'\n\
         echo $$ >{0}.draft\nmv {0}.draft {0}\nexec sleep 600\n",
        pid_file.display()
    );
    fs::write(&bitcoind, script).unwrap();
    fs::set_permissions(&bitcoind, fs::Permissions::from_mode(0o755)).unwrap();
    let child = testnet(home.path(), &bitcoind, &["up"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let soon = std::time::Duration::from_secs(30);
    let pid = bitmesh_testnet::wait::until(soon, "bitcoind", || {
        fs::read_to_string(&pid_file).ok()?.trim().parse().ok()
    });

    let up = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(up, rustix::process::Signal::INT).unwrap();

    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", stderr(&ended));
    let folders = home.path().read_dir().unwrap().map_while(Result::ok);
    let left: Vec<_> = folders
        .filter(|it| {
            it.file_name()
                .to_string_lossy()
                .starts_with("bitmesh-testnet")
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let gone = || {
        // A zombie runs no more.
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_ref().unwrap()));
        stat.map_or(true, |stat: String| stat.contains(") Z"))
            .then_some(())
    };
    let _: u32 = *pid.as_ref().unwrap();
    bitmesh_testnet::wait::until(soon, "the pretended bitcoind to be gone", gone).unwrap();
}
