//! The distribution's package, unpacked beside the libraries it needs.
//!
//! apt does the work: it reads the mirror and the proxy from the machine's own configuration, and
//! verifies signatures with the distribution's keyring. Its state is a temporary folder of ours, so
//! the machine's is neither read nor changed and no rights are needed. The program then runs through
//! the unpacked loader and libraries, so a package of a newer release works on an older one.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::{OLDEST_MAJOR, numbers, run};

/// Packages that hold a bitcoind, the preferred one first.
const PACKAGES: [&str; 2] = ["bitcoind", "bitcoin-knots"];

/// More libraries than this means that the dependencies were misread.
const MOST_LIBRARIES: usize = 100;

/// The Debian release whose backports carry a bitcoind, and that backports suite.
const DEBIAN_SUITES: [&str; 2] = ["trixie", "trixie-backports"];

/// Unpacks a bitcoind and its libraries into `stage`.
pub(super) fn fetch(stage: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), String> {
    for tool in ["apt-get", "apt-cache", "apt-config", "dpkg-deb"] {
        run(Command::new(tool).arg("--version"))?;
    }
    let distribution = Distribution::of_this_machine()?;
    let mut reasons = Vec::new();
    for suites in distribution.attempts() {
        match fetch_from(&distribution, &suites, stage, progress) {
            Ok(()) => return Ok(()),
            Err(why) => reasons.push(format!("{}: {why}", suites.join(" + "))),
        }
    }
    Err(reasons.join("\n"))
}

fn fetch_from(
    distribution: &Distribution,
    suites: &[String],
    stage: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<(), String> {
    let apt = Apt::new(stage, distribution, suites)?;

    progress(&format!(
        "reading the package lists of {}",
        suites.join(" and ")
    ));
    apt.update()?;
    let package = apt.candidate()?;
    let mut packages = apt.libraries(&package)?;
    packages.insert(package.clone());

    progress(&format!(
        "downloading {package} and {} libraries",
        packages.len() - 1
    ));
    let archives = apt.download(&packages)?;

    progress(&format!("unpacking {package}"));
    let root = stage.join("root");
    for archive in archives {
        run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&root))?;
    }
    wrap(stage, &root)
}

/// The distribution, as far as its packages are concerned.
#[derive(Debug)]
struct Distribution {
    family: Family,
    codename: String,
    mirror: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Debian,
    Ubuntu,
}

impl Family {
    fn keyring(self) -> &'static str {
        match self {
            Self::Debian => "/usr/share/keyrings/debian-archive-keyring.gpg",
            Self::Ubuntu => "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
        }
    }

    fn components(self) -> &'static str {
        match self {
            Self::Debian => "main",
            Self::Ubuntu => "main universe",
        }
    }
}

impl Distribution {
    fn of_this_machine() -> Result<Self, String> {
        let release = fs::read_to_string("/etc/os-release")
            .map_err(|error| format!("cannot read /etc/os-release: {error}"))?;
        let family = match field(&release, "ID").as_deref() {
            Some("debian") => Family::Debian,
            Some("ubuntu") => Family::Ubuntu,
            other => {
                let name = other.unwrap_or("this system");
                return Err(format!("no bitcoind package is known for {name}"));
            }
        };
        let codename = field(&release, "VERSION_CODENAME")
            .ok_or("/etc/os-release does not name the release")?;
        if !Path::new(family.keyring()).is_file() {
            return Err(format!(
                "{} is missing, so packages cannot be verified",
                family.keyring()
            ));
        }
        // Without lists on the machine apt still knows its sources.
        let targets = run(Command::new("apt-get").args([
            "indextargets",
            "--no-release-info",
            "--format",
            "$(RELEASE) $(COMPONENT) $(SITE)",
            "Created-By: Packages",
        ]))?;
        let mirror = targets
            .lines()
            .filter_map(|line| line.strip_prefix(&format!("{codename} main ")))
            .next()
            .ok_or_else(|| format!("apt has no source for {codename} main"))?
            .to_owned();
        Ok(Self {
            family,
            codename,
            mirror,
        })
    }

    /// The sets of suites to look in, in order.
    fn attempts(&self) -> Vec<Vec<String>> {
        let own = vec![self.codename.clone()];
        match self.family {
            Family::Ubuntu => vec![own],
            Family::Debian => {
                let carrying = DEBIAN_SUITES.map(str::to_owned).to_vec();
                if carrying.contains(&self.codename) {
                    vec![carrying]
                } else {
                    vec![carrying, own]
                }
            }
        }
    }
}

/// The value of `name` in the format of os-release.
fn field(release: &str, name: &str) -> Option<String> {
    let value = release
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

/// apt with a state of its own.
#[derive(Debug)]
struct Apt {
    // Beside the stage, and gone with it.
    folder: PathBuf,
    config: PathBuf,
}

impl Apt {
    fn new(stage: &Path, distribution: &Distribution, suites: &[String]) -> Result<Self, String> {
        let folder = stage.with_file_name("apt");
        let told = |error: std::io::Error| format!("cannot write to {}: {error}", folder.display());
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(told)?;
        }
        for part in ["state/lists/partial", "cache/archives/partial", "archives"] {
            fs::create_dir_all(folder.join(part)).map_err(told)?;
        }
        fs::write(folder.join("state/status"), "").map_err(told)?;

        let (keyring, components) = (
            distribution.family.keyring(),
            distribution.family.components(),
        );
        let sources: String = suites
            .iter()
            .map(|suite| {
                format!(
                    "deb [signed-by={keyring}] {} {suite} {components}\n",
                    distribution.mirror
                )
            })
            .collect();
        fs::write(folder.join("sources.list"), sources).map_err(told)?;

        // Of the machine's configuration only what says how to fetch is kept (a proxy, say); its
        // hooks would act on the machine.
        let how_to_fetch = run(Command::new("apt-config").args(["dump", "Acquire"]))?;
        let at = folder
            .to_str()
            .filter(|at| !at.contains(['"', '\\']))
            .ok_or_else(|| {
                format!(
                    "apt cannot work in a folder with this name: {}",
                    folder.display()
                )
            })?;
        let config = folder.join("apt.conf");
        let text = format!(
            "{how_to_fetch}\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n\
             APT::Update::Error-Mode \"any\";\n\
             APT::Sandbox::User \"root\";\n\
             Dir::State \"{at}/state\";\n\
             Dir::State::status \"{at}/state/status\";\n\
             Dir::Cache \"{at}/cache\";\n\
             Dir::Etc::sourcelist \"{at}/sources.list\";\n\
             Dir::Etc::sourceparts \"{at}/none\";\n\
             Dir::Etc::parts \"{at}/none\";\n\
             Dir::Etc::main \"{at}/none\";\n\
             Dir::Etc::preferences \"{at}/none\";\n\
             Dir::Etc::preferencesparts \"{at}/none\";\n"
        );
        fs::write(&config, text).map_err(told)?;
        Ok(Self { folder, config })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config);
        command
    }

    fn update(&self) -> Result<(), String> {
        run(self.command("apt-get").args(["-q", "update"])).map(drop)
    }

    /// The first of [`PACKAGES`] that these suites carry in a version that will do.
    fn candidate(&self) -> Result<String, String> {
        for package in PACKAGES {
            let policy = run(self.command("apt-cache").args(["policy", package]))?;
            let version = policy
                .lines()
                .find_map(|line| line.trim().strip_prefix("Candidate: "));
            // An epoch, `1:29.0`, is no part of the program's version.
            let upstream = version.map(|version| version.rsplit(':').next().unwrap_or(version));
            let major = upstream.and_then(|version| numbers(version).first().copied());
            if major.is_some_and(|major| major >= u64::from(OLDEST_MAJOR)) {
                return Ok(package.to_owned());
            }
        }
        Err(format!(
            "no {} of version {OLDEST_MAJOR} or later",
            PACKAGES.join(" or ")
        ))
    }

    /// The library packages that `package` needs, directly or through another library.
    fn libraries(&self, package: &str) -> Result<BTreeSet<String>, String> {
        let mut found = BTreeSet::new();
        let mut unread = vec![package.to_owned()];
        while !unread.is_empty() {
            let text = run(self
                .command("apt-cache")
                .args([
                    "depends",
                    "--no-recommends",
                    "--no-suggests",
                    "--no-conflicts",
                ])
                .args(["--no-breaks", "--no-replaces", "--no-enhances"])
                .args(&unread))?;
            let named = libraries_named_in(&text).into_iter();
            unread = named
                .filter(|library| found.insert(library.clone()))
                .collect();
            if found.len() > MOST_LIBRARIES {
                return Err(format!(
                    "{package} seems to need more than {MOST_LIBRARIES} libraries"
                ));
            }
        }
        Ok(found)
    }

    fn download(&self, packages: &BTreeSet<String>) -> Result<Vec<PathBuf>, String> {
        let archives = self.folder.join("archives");
        run(self
            .command("apt-get")
            .args(["-q", "download"])
            .args(packages)
            .current_dir(&archives))?;
        let told = |error: std::io::Error| format!("cannot read {}: {error}", archives.display());
        fs::read_dir(&archives)
            .map_err(told)?
            .map(|entry| Ok(entry.map_err(told)?.path()))
            .filter(|path| !matches!(path, Ok(path) if path.extension().is_none_or(|kind| kind != "deb")))
            .collect()
    }
}

/// The libraries among the dependencies that `apt-cache depends` printed. Programs among them serve
/// the installation only, and installing is what we do not do.
fn libraries_named_in(depends: &str) -> Vec<String> {
    depends
        .lines()
        .filter_map(|line| {
            let line = line.trim_start_matches([' ', '|']);
            let name = line
                .strip_prefix("Depends: ")
                .or_else(|| line.strip_prefix("PreDepends: "))?;
            (name.starts_with("lib") || name.starts_with("zlib")).then(|| name.to_owned())
        })
        .collect()
}

/// Writes the programs that start what was unpacked, and drops what they do not need.
fn wrap(stage: &Path, root: &Path) -> Result<(), String> {
    let told = |error: std::io::Error| format!("cannot write to {}: {error}", stage.display());
    for unused in ["etc", "var", "usr/share"] {
        let unused = root.join(unused);
        if unused.exists() {
            fs::remove_dir_all(unused).map_err(told)?;
        }
    }
    let folders = library_folders(root).map_err(told)?;
    let relative = |path: &Path| {
        path.strip_prefix(stage)
            .unwrap_or(path)
            .display()
            .to_string()
    };
    let loader = folders
        .iter()
        .find_map(|folder| loader_in(folder))
        .map(|loader| relative(&loader))
        .ok_or("the unpacked C library has no loader")?;
    let library_path: Vec<_> = folders
        .iter()
        .map(|folder| format!("$here/{}", relative(folder)))
        .collect();

    for program in ["bitcoind", "bitcoin-cli"] {
        let unpacked = root.join("usr/bin").join(program);
        if !unpacked.is_file() {
            continue;
        }
        let script = format!(
            "#!/bin/sh\nhere=${{0%/*}}\nexec \"$here/{loader}\" --library-path \"{}\" \"$here/{}\" \"$@\"\n",
            library_path.join(":"),
            relative(&unpacked)
        );
        let path = stage.join(program);
        fs::write(&path, script).map_err(told)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(told)?;
    }
    Ok(())
}

/// The folders of libraries that Debian's layout has: `lib/TRIPLE` and `usr/lib/TRIPLE`.
fn library_folders(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for parent in ["usr/lib", "lib"].map(|parent| root.join(parent)) {
        if !parent.is_dir() {
            continue;
        }
        for entry in fs::read_dir(parent)? {
            let entry = entry?;
            if entry.file_type()?.is_dir()
                && entry.file_name().to_string_lossy().contains("-linux-")
            {
                folders.push(entry.path());
            }
        }
    }
    Ok(folders)
}

fn loader_in(folder: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(folder).ok()?.flatten();
    entries
        .find(|entry| entry.file_name().to_string_lossy().starts_with("ld-linux"))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_libraries_are_followed_and_alternatives_count() {
        let said = "bitcoin-knots\n |Depends: debconf\n  Depends: <debconf-2.0>\n    cdebconf\n \
            |Depends: libssl3\n  Depends: libc6\n  PreDepends: zlib1g\n  Depends: systemd\n";

        assert_eq!(libraries_named_in(said), ["libssl3", "libc6", "zlib1g"]);
    }

    #[test]
    fn a_field_of_os_release_is_read_with_and_without_quotes() {
        let release = "ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n";

        assert_eq!(field(release, "ID").as_deref(), Some("debian"));
        assert_eq!(field(release, "VERSION_ID").as_deref(), Some("12"));
        assert_eq!(field(release, "NAME"), None);
    }

    #[test]
    fn an_old_debian_looks_in_the_release_that_carries_bitcoind_first() {
        let debian = |codename: &str| Distribution {
            family: Family::Debian,
            codename: codename.to_owned(),
            mirror: String::new(),
        };

        assert_eq!(debian("trixie").attempts(), [DEBIAN_SUITES]);
        assert_eq!(
            debian("bookworm").attempts(),
            [&DEBIAN_SUITES[..], &["bookworm"]]
        );
    }
}
