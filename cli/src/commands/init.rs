//! `init`: identity, wallet and configuration of a new node, or of an old one restored.

use std::{
    io::{self, IsTerminal, Read},
    path::Path,
};

use bitmesh_market::envelope::Network;
use bitmesh_node::{
    control::api::Words,
    paths::{Lock, create_private_dir},
    settings, words,
};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    args::InitArgs, context::Context, failure::Failure, output::Style, passphrase, render,
};

/// Longest input that can be twelve words.
const WORDS_MAX: u64 = 4 * 1024;

#[derive(Serialize)]
struct Made {
    node: String,
    network: String,
    datadir: String,
    config: String,
    words_file: String,
    restored: bool,
    sealed: bool,
}

pub(super) fn run(context: &Context, args: &InitArgs) -> Result<(), Failure> {
    let paths = &context.paths;
    let network = context.network;
    let is_stdin = |file: &Option<std::path::PathBuf>| file.as_deref() == Some(Path::new("-"));
    if is_stdin(&args.words_file) && is_stdin(&args.passphrase_file) {
        return Err(Failure::usage(
            "words and passphrase cannot both be on standard input",
            "put one of them into a file",
        ));
    }
    // Everything that can be wrong is found before anything is written.
    let restored = match &args.words_file {
        Some(path) => Some(words::parse(&read_words(path)?, network)?),
        None => None,
    };
    let new_config = configuration(context, network, &args.settings)?;
    if paths.words().exists() {
        return Err(words::WordsFileError::Exists(paths.datadir.clone()).into());
    }

    let passphrase = match args.passphrase || args.passphrase_file.is_some() {
        true => Some(passphrase::to_set(
            context,
            args.passphrase_file.as_deref(),
        )?),
        false => None,
    };

    create_private_dir(&paths.datadir)
        .map_err(|error| Failure::file("make", &paths.datadir, &error))?;
    let _lock = Lock::acquire(paths)?;
    let is_restored = restored.is_some();
    let keys = match restored {
        Some(keys) => {
            let birth_height = args.birth_height.unwrap_or(0);
            words::restore(paths, &keys, birth_height, passphrase.as_ref())?;
            keys
        }
        None => words::create(paths, network, passphrase.as_ref())?,
    };
    if let Some(text) = new_config {
        if let Some(folder) = paths.config.parent() {
            create_private_dir(folder).map_err(|error| Failure::file("make", folder, &error))?;
        }
        settings::write(&paths.config, &text)
            .map_err(|error| Failure::file("write", &paths.config, &error))?;
    }

    let made = Made {
        node: words::node_id(&keys).to_string(),
        network: network.to_string(),
        datadir: paths.datadir.display().to_string(),
        config: paths.config.display().to_string(),
        words_file: paths.words().display().to_string(),
        restored: is_restored,
        sealed: passphrase.is_some(),
    };
    context.out.reply(&made, summary)?;
    if !made.restored && !context.out.is_json() && io::stdout().is_terminal() {
        let shown = Words {
            words: keys.words().split(' ').map(str::to_owned).collect(),
            birth_height: 0,
        };
        context.out.note(
            "\nThese twelve words restore this node's name and its coins on chain, and whoever has \
             them has the coins.\nWrite them on paper now; they are not shown again unless you ask.\n",
        );
        context.out.text(&shown, render::words)?;
    }
    context.out.note(&format!(
        "What the words do not bring back (vouchers of a seller, leases, credit with others) is in \
         {}:\nkeep it with \"bitmesh backup create\".",
        paths.journal().display()
    ));
    if network == Network::Mainnet {
        context.out.note(
            "This is a node for mainnet, with real money; for play money: --network signet. It finds \
             nodes on its\nlocal network by itself, and those of the internet through one address: \
             bitmesh config set mesh.bootstrap ADDRESS",
        );
    }
    let datadir = context.global.datadir.as_ref();
    let whose = datadir
        .map(|path| format!(" --datadir {}", path.display()))
        .unwrap_or_default();
    context.out.note(&format!("\nNext: bitmesh{whose} up"));
    Ok(())
}

fn summary(made: &Made, style: Style) -> String {
    let how = if made.restored {
        "restored from its words"
    } else {
        "new"
    };
    let rows = [
        ("node", style.bold(&made.node)),
        ("network", made.network.clone()),
        ("data", made.datadir.clone()),
        ("config", made.config.clone()),
        (
            "wallet",
            format!(
                "{how}; words in {} ({})",
                made.words_file,
                match made.sealed {
                    true => "under your passphrase",
                    false => "readable by you alone",
                }
            ),
        ),
    ];
    rows.map(|(name, text)| {
        let room = " ".repeat("network".len() - name.len());
        format!("{}{room}  {text}\n", style.dim(name))
    })
    .concat()
}

pub(super) fn read_words(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let mut words = Zeroizing::new(String::with_capacity(256));
    let read = if path == Path::new("-") {
        io::stdin()
            .lock()
            .take(WORDS_MAX)
            .read_to_string(&mut words)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(WORDS_MAX).read_to_string(&mut words))
    };
    read.map_err(|error| Failure::file("read the words from", path, &error))?;
    Ok(words)
}

/// The configuration to write, or nothing if there is one that stays as it is.
fn configuration(
    context: &Context,
    network: Network,
    given: &[String],
) -> Result<Option<String>, Failure> {
    let path = &context.paths.config;
    let exists = path.exists();
    if exists && given.is_empty() {
        bitmesh_node::config::Config::load(path)?;
        return Ok(None);
    }
    let mut text = if exists {
        settings::read(path)?
    } else {
        template(network)
    };
    for setting in given {
        let Some((key, value)) = setting.split_once('=') else {
            return Err(Failure::usage(
                format!("--set {setting} has no value"),
                "write it like --set sell.price=90sat/GB",
            ));
        };
        (text, _) = super::config::changed(path, &text, key.trim(), value.trim())?;
    }
    Ok(Some(text))
}

/// A configuration that says what most people change, and changes nothing else.
fn template(network: Network) -> String {
    format!(
        "\
# BitMesh. \"bitmesh config get\" shows every setting, \"bitmesh config set\" changes one and keeps
# these comments, \"bitmesh config check\" checks the file.

network = \"{network}\"

# Where blocks come from. On mainnet and signet: block filters of other nodes, unless a bitcoind is
# named here, which also sees payments that no block holds yet.
[chain.bitcoind]
# url = \"http://127.0.0.1:8332\"
# cookie = \"/home/me/.bitcoin/.cookie\"

[sell]
# price = \"120 sat/GB\"
# rate = \"20 Mbit/s\"           # of one lease, both directions together
# total_rate = \"100 Mbit/s\"    # of all leases together
# max_leases = 8

[buy]
# max_price = \"1000 sat/GB\"
# proxy = \"127.0.0.1:1080\"
"
    )
}

#[cfg(test)]
mod tests {
    use bitmesh_node::config::Config;

    use super::*;

    #[test]
    fn the_new_configuration_is_the_default_one() {
        let config = Config::parse(&template(Network::Signet)).unwrap();
        assert_eq!(
            config,
            Config {
                network: Network::Signet,
                ..Config::default()
            }
        );
    }

    #[test]
    fn every_suggestion_in_it_works() {
        let text: String = template(Network::Mainnet)
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(setting) if setting.contains(" = ") => format!("{setting}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        assert!(text.contains("\nprice = "), "{text}");
        Config::parse(&text).unwrap();
    }
}
