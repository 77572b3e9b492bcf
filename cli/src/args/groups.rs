//! The first screen of help: commands in the groups in which people look for them.

use std::fmt::Write;

/// Headings and the commands under them. A test checks that each command is under exactly one.
const GROUPS: [(&str, &[&str]); 7] = [
    ("Start", &["init", "up", "down", "status", "daemon"]),
    ("Sell", &["sell", "earnings"]),
    ("Buy", &["offers", "buy", "leases", "lease", "usage"]),
    ("Wallet", &["wallet", "channels", "backup", "journal"]),
    ("Network", &["id", "peers"]),
    ("Set up", &["config", "completions", "man", "help"]),
    ("Develop", &["testnet", "events", "api"]),
];

/// Replaces the flat list of commands in the help of `command` by the groups.
pub(super) fn apply(command: clap::Command) -> clap::Command {
    let mut list = String::new();
    for (heading, names) in GROUPS {
        let _ = writeln!(list, "\x1b[1m{heading}:\x1b[0m");
        for name in names {
            let about = command
                .find_subcommand(name)
                .and_then(clap::Command::get_about)
                .map(ToString::to_string)
                .unwrap_or_default();
            let _ = writeln!(list, "  \x1b[1m{name:<12}\x1b[0m {about}");
        }
        list.push('\n');
    }
    let list = clap::builder::StyledStr::from(list);
    command
        .help_template(
            "{about}\n\n{usage-heading} {usage}\n\n{before-help}Options:\n{options}{after-help}",
        )
        .before_help(list)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn every_command_is_in_exactly_one_group() {
        let mut grouped: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| names.iter().copied())
            .collect();
        let command = Cli::command();
        let mut all: Vec<&str> = command
            .get_subcommands()
            .map(clap::Command::get_name)
            .collect();
        grouped.sort_unstable();
        all.sort_unstable();
        assert_eq!(grouped, all);
    }
}
