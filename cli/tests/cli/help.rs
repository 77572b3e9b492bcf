//! Help, manual pages and completions.

use clap::Command;

/// Calls `look` with every command and its full name.
fn walk(command: &Command, name: &str, look: &mut impl FnMut(&Command, &str)) {
    look(command, name);
    for inner in command.get_subcommands() {
        walk(inner, &format!("{name} {}", inner.get_name()), look);
    }
}

/// Every command as a built tree, its help as wide as a narrow terminal.
fn tree() -> Command {
    let mut command = bitmesh::args::command().term_width(100);
    command.build();
    command
}

#[test]
fn the_description_holds_together() {
    bitmesh::args::command().debug_assert();
}

#[test]
fn every_help_has_an_example_that_can_be_typed() {
    walk(&tree(), "bitmesh", &mut |command, name| {
        let help = command.clone().render_long_help().to_string();
        assert!(help.contains("Example"), "{name} has no example:\n{help}");
        let own = help
            .lines()
            .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
            .any(|line| line.contains(name));
        assert!(own, "no example of {name} shows {name}:\n{help}");
    });
}

#[test]
fn every_example_is_a_command_line_that_is_understood() {
    walk(&tree(), "bitmesh", &mut |command, name| {
        let help = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        for line in help
            .lines()
            .filter_map(|line| line.strip_prefix("  bitmesh "))
        {
            // An example may have a comment behind it, and may go on with what other programs do.
            let line = line.split("   ").next().unwrap_or_default();
            let line = line.split([';', '|', '>', '&']).next().unwrap_or_default();
            // Left of `2>file`.
            let line = line
                .strip_suffix(" json 2")
                .map_or(line.to_owned(), |line| format!("{line} json"));
            let words = shell_words(&format!("bitmesh {line}"));
            let parsed = bitmesh::args::command().try_get_matches_from(&words);
            assert!(parsed.is_ok(), "{name}: {words:?}\n{}", parsed.unwrap_err());
        }
    });
}

/// Splits at spaces, except within quotes of either kind. No more than our examples need.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for character in line.chars() {
        match (quote, character) {
            (None, ' ') => words.push(String::new()),
            (None, '\'' | '"') => quote = Some(character),
            (Some(open), close) if open == close => quote = None,
            (_, other) => words.last_mut().unwrap().push(other),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn the_help_of_every_command_is_as_it_was() {
    walk(&tree(), "bitmesh", &mut |command, name| {
        let help = command.clone().render_help().to_string();
        insta::assert_snapshot!(name.replace(' ', "_"), help);
    });
}

#[test]
fn no_help_is_wider_than_a_hundred_columns() {
    walk(&tree(), "bitmesh", &mut |command, name| {
        for line in command.clone().render_help().to_string().lines() {
            assert!(line.chars().count() <= 100, "{name}: {line}");
        }
    });
}
