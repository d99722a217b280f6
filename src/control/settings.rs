//! Settings: the names below `/proc/sys/net/ipv4/vs`, with the defaults and ranges of the kernel.
//!
//! Names that this director does not act on yet are known too: they can be read, and set to their default, so that
//! scripts that set what is so anyway go on working. Anything else is refused rather than silently ignored.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::ControlError;

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// What it is when nobody set it.
    pub default: Default,
    /// What it may be.
    pub kind: Kind,
    /// Whether the director acts on it.
    pub support: Support,
}

/// A setting's default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Default {
    /// A number.
    Number(i64),
    /// Two numbers.
    Pair(u32, u32),
    /// Nothing.
    Empty,
}

/// What a setting may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A number from the first to the second.
    Range(i64, i64),
    /// A power of two, up to and with this.
    PowerOfTwo(i64),
    /// A threshold and a period, the first below the second unless the second is 0.
    Threshold,
    /// A list of processors.
    Processors,
}

/// Whether a director acts on a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// It does.
    Live,
    /// Not yet: it behaves as with the default. What is missing.
    NotYet(&'static str),
}

/// A setting's value.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SettingValue {
    /// A number.
    Number(i64),
    /// Two numbers.
    Pair(u32, u32),
    /// A text.
    Text(String),
}

impl fmt::Display for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Pair(first, second) => write!(f, "{first}\t{second}"),
            Self::Text(text) => text.fmt(f),
        }
    }
}

const fn not_yet(name: &'static str, default: i64, kind: Kind, missing: &'static str) -> Setting {
    Setting { name, default: Default::Number(default), kind, support: Support::NotYet(missing) }
}

const fn live(name: &'static str, default: i64, kind: Kind) -> Setting {
    Setting { name, default: Default::Number(default), kind, support: Support::Live }
}

const SWITCH: Kind = Kind::Range(0, 1);
const MODE: Kind = Kind::Range(0, 3);
const ANY: Kind = Kind::Range(0, i32::MAX as i64);
const DEFENCE: &str = "defence against floods";
const SYNC: &str = "synchronization";

/// All settings, by name. The kernel takes `sync_qlen_max` from its free memory; the number here is a middling one.
#[rustfmt::skip]
pub const SETTINGS: [Setting; 35] = [
    not_yet("am_droprate", 10, ANY, DEFENCE),
    not_yet("amemthresh", 1024, ANY, DEFENCE),
    not_yet("backup_only", 0, SWITCH, SYNC),
    not_yet("cache_bypass", 0, SWITCH, "forwarding to the original destination"),
    not_yet("conn_lfactor", -4, Kind::Range(-8, 8), "a connection table that grows"),
    not_yet("conn_max", 1 << 30, Kind::Range(0, 1 << 30), "a limit below the table's capacity"),
    live("conn_reuse_mode", 1, MODE),
    not_yet("conntrack", 0, SWITCH, "the host's connection tracking"),
    not_yet("debug_level", 0, Kind::Range(0, 12), "a level of debugging"),
    not_yet("drop_entry", 0, MODE, DEFENCE),
    not_yet("drop_packet", 0, MODE, DEFENCE),
    Setting { name: "est_cpulist", default: Default::Empty, kind: Kind::Processors, support: Support::NotYet("placing the estimators") },
    not_yet("est_nice", 0, Kind::Range(-20, 19), "placing the estimators"),
    live("expire_nodest_conn", 0, SWITCH),
    live("expire_quiescent_template", 0, SWITCH),
    not_yet("ignore_tunneled", 0, SWITCH, "sparing tunnelled packets"),
    live("lblc_expiration", 86_400, ANY),
    live("lblcr_expiration", 86_400, ANY),
    live("nat_icmp_send", 0, SWITCH),
    live("pmtu_disc", 1, SWITCH),
    not_yet("run_estimation", 1, SWITCH, "stopping the estimators"),
    not_yet("schedule_icmp", 0, SWITCH, "scheduling ICMP errors"),
    not_yet("secure_tcp", 0, MODE, DEFENCE),
    not_yet("sloppy_sctp", 0, SWITCH, "scheduling SCTP without INIT"),
    live("sloppy_tcp", 0, SWITCH),
    not_yet("snat_reroute", 1, SWITCH, "keeping the route of NAT answers"),
    not_yet("svc_lfactor", -3, Kind::Range(-8, 8), "a service table that grows"),
    not_yet("sync_persist_mode", 0, SWITCH, SYNC),
    not_yet("sync_ports", 1, Kind::PowerOfTwo(64), SYNC),
    not_yet("sync_qlen_max", 4096, ANY, SYNC),
    not_yet("sync_refresh_period", 0, ANY, SYNC),
    not_yet("sync_retries", 0, MODE, SYNC),
    not_yet("sync_sock_size", 0, ANY, SYNC),
    Setting { name: "sync_threshold", default: Default::Pair(3, 50), kind: Kind::Threshold, support: Support::NotYet(SYNC) },
    not_yet("sync_version", 1, SWITCH, SYNC),
];

impl Setting {
    /// The setting called `name`; `net.ipv4.vs.` or `/proc/sys/net/ipv4/vs/` may stand before it.
    ///
    /// # Errors
    /// [`ControlError::NoSuchSetting`]
    pub fn find(name: &str) -> Result<&'static Self, ControlError> {
        let short = name.strip_prefix("net.ipv4.vs.").or_else(|| name.strip_prefix("/proc/sys/net/ipv4/vs/"));
        let short = short.unwrap_or(name);
        let found = SETTINGS.iter().find(|setting| setting.name == short);
        found.ok_or_else(|| ControlError::NoSuchSetting(name.to_owned()))
    }

    /// Its value when nobody set it.
    pub fn default_value(&self) -> SettingValue {
        match self.default {
            Default::Number(number) => SettingValue::Number(number),
            Default::Pair(first, second) => SettingValue::Pair(first, second),
            Default::Empty => SettingValue::Text(String::new()),
        }
    }

    /// Reads a value for it, and says whether the director can act on that.
    ///
    /// # Errors
    /// [`ControlError::BadSetting`] for what it can never be, [`ControlError::NotSupported`] for what this director
    /// cannot do yet.
    pub fn accept(&self, text: &str) -> Result<SettingValue, ControlError> {
        let value = self.read(text.trim()).ok_or_else(|| ControlError::BadSetting {
            name: self.name.to_owned(),
            value: text.to_owned(),
            expected: self.kind.to_string(),
        })?;
        match self.support {
            Support::NotYet(missing) if value != self.default_value() => {
                let default = self.default_value();
                Err(ControlError::NotSupported(format!("{} other than '{default}': {missing}", self.name)))
            }
            _ => Ok(value),
        }
    }

    fn read(&self, text: &str) -> Option<SettingValue> {
        let number = || text.parse::<i64>().ok();
        match self.kind {
            Kind::Range(low, high) => {
                number().filter(|number| (low..=high).contains(number)).map(SettingValue::Number)
            }
            Kind::PowerOfTwo(high) => number()
                .filter(|&number| (1..=high).contains(&number) && number & (number - 1) == 0)
                .map(SettingValue::Number),
            Kind::Threshold => {
                let mut numbers = text.split_whitespace().map(|word| word.parse::<u32>().ok());
                let (Some(Some(threshold)), Some(Some(period)), None) =
                    (numbers.next(), numbers.next(), numbers.next())
                else {
                    return None;
                };
                (period == 0 || threshold < period).then_some(SettingValue::Pair(threshold, period))
            }
            Kind::Processors => text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'-'))
                .then(|| SettingValue::Text(text.to_owned())),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(low, high) => write!(f, "it is a number from {low} to {high}"),
            Self::PowerOfTwo(high) => write!(f, "it is a power of two up to {high}"),
            Self::Threshold => {
                f.write_str("it is two numbers, the first below the second unless the second is 0")
            }
            Self::Processors => f.write_str("it is a list of processors, as in 0,2-5"),
        }
    }
}

/// The text of `uvs get`: one line for each setting, or one for the setting called `name`.
///
/// # Errors
/// [`ControlError::NoSuchSetting`]
pub fn report(
    name: Option<&str>,
    value_of: impl Fn(&Setting) -> SettingValue,
) -> Result<String, ControlError> {
    match name {
        Some(name) => Ok(format!("{}\n", value_of(Setting::find(name)?))),
        None => {
            Ok(SETTINGS.iter().map(|setting| format!("{} = {}\n", setting.name, value_of(setting))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_and_defaults_are_accepted() {
        assert!(SETTINGS.is_sorted_by(|a, b| a.name < b.name));
        for setting in &SETTINGS {
            let default = setting.default_value();
            assert_eq!(setting.accept(&default.to_string()), Ok(default), "{}", setting.name);
        }
    }

    #[test]
    fn values_are_checked_before_support_is() {
        let accept = |name, value| Setting::find(name).and_then(|setting| setting.accept(value));
        assert_eq!(accept("net.ipv4.vs.sloppy_tcp", "1"), Ok(SettingValue::Number(1)));
        assert_eq!(accept("/proc/sys/net/ipv4/vs/conn_reuse_mode", " 3\n"), Ok(SettingValue::Number(3)));
        assert!(matches!(accept("sloppy_tcp", "2"), Err(ControlError::BadSetting { .. })));
        assert!(matches!(accept("drop_entry", "4"), Err(ControlError::BadSetting { .. })));
        assert!(matches!(accept("drop_entry", "3"), Err(ControlError::NotSupported(_))));
        assert!(matches!(accept("sync_ports", "3"), Err(ControlError::BadSetting { .. })));
        assert!(matches!(accept("sync_threshold", "50 3"), Err(ControlError::BadSetting { .. })));
        assert!(matches!(accept("sync_threshold", "50 0"), Err(ControlError::NotSupported(_))));
        assert_eq!(accept("sync_threshold", "3 50"), Ok(SettingValue::Pair(3, 50)));
        assert_eq!(accept("no_such", "1"), Err(ControlError::NoSuchSetting("no_such".to_owned())));
        let error = accept("secure_tcp", "1").unwrap_err();
        assert_eq!(
            error.to_string(),
            "secure_tcp other than '0': defence against floods is not supported yet"
        );
    }

    #[test]
    fn reports_name_each_setting() {
        let all = report(None, Setting::default_value).unwrap();
        assert_eq!(all.lines().count(), SETTINGS.len());
        assert!(all.contains("sync_threshold = 3\t50\n"));
        assert_eq!(report(Some("pmtu_disc"), Setting::default_value), Ok("1\n".to_owned()));
        assert!(report(Some("x"), Setting::default_value).is_err());
    }
}
