//! What a blueprint's members have besides their root volume: data images, which all read, and
//! volumes of their own or of their farm, which they write.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::checked_toml::Table;
use crate::{DataName, ImageRef, edge};

/// Most data volumes of a member: LUN 1 to 15.
pub const MAX_DATA: usize = 15;

/// Who may write a data volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataKind {
    /// One member.
    Exclusive,
    /// All members that have it, arbitrated by persistent reservations.
    Shared,
}

impl fmt::Display for DataKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        })
    }
}

impl From<DataKind> for edge::volume::Kind {
    fn from(kind: DataKind) -> Self {
        match kind {
            DataKind::Exclusive => Self::Exclusive,
            DataKind::Shared => Self::SharedReadWrite,
        }
    }
}

impl FromStr for DataKind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "exclusive" => Ok(Self::Exclusive),
            "shared" => Ok(Self::Shared),
            _ => Err(format!("{s:.32?} is not a kind; these are: exclusive, shared")),
        }
    }
}

/// A volume that is empty at first and written by members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataVolume {
    /// Its name among the member's, or among the farm's if it is shared.
    pub name: DataName,
    /// Who may write it.
    pub kind: DataKind,
    /// Size in MiB, 1..=16 Mi.
    pub size_mib: u64,
}

/// One data volume of a blueprint: an image, which is `I` (its name, or its version), or a volume.
/// Written down, an image is a string and a volume a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Data<I> {
    /// Shared read-only.
    Image(I),
    /// Read-write.
    Volume(DataVolume),
}

impl<I> Data<I> {
    /// The image, if it is one.
    pub fn image(&self) -> Option<&I> {
        match self {
            Self::Image(image) => Some(image),
            Self::Volume(_) => None,
        }
    }

    /// The volume, if it is one.
    pub fn volume(&self) -> Option<&DataVolume> {
        match self {
            Self::Image(_) => None,
            Self::Volume(volume) => Some(volume),
        }
    }

    /// The same with the image looked up.
    ///
    /// # Errors
    /// What `resolve` says.
    pub fn resolve<J, E>(&self, resolve: impl FnOnce(&I) -> Result<J, E>) -> Result<Data<J>, E> {
        match self {
            Self::Image(image) => resolve(image).map(Data::Image),
            Self::Volume(volume) => Ok(Data::Volume(volume.clone())),
        }
    }
}

impl FromStr for Data<ImageRef> {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        s.parse().map(Self::Image)
    }
}

/// Reads the array `data` of a blueprint: names of images, and tables `{ name, kind, size_mib }`.
/// What is wrong with it becomes a fault of its file.
pub fn read_data(table: &mut Table<'_>) -> Vec<Data<ImageRef>> {
    let data = table.list_or_tables("data", |inner| {
        let name = inner.required("name");
        let kind = inner.required("kind");
        let size_mib = inner.integer("size_mib", 1..=16 << 20);
        Some(Data::Volume(DataVolume { name: name?, kind: kind?, size_mib: size_mib? }))
    });
    if data.len() > MAX_DATA {
        table.fault("data", format!("has {} volumes; {MAX_DATA} are allowed", data.len()));
    }
    let images: Vec<_> = data.iter().filter_map(Data::image).collect();
    if images.iter().map(|image| &image.name).collect::<BTreeSet<_>>().len() < images.len() {
        table.fault("data", "names an image twice");
    }
    let volumes: Vec<_> = data.iter().filter_map(Data::volume).collect();
    if volumes.iter().map(|volume| &volume.name).collect::<BTreeSet<_>>().len() < volumes.len() {
        table.fault("data", "names a volume twice");
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checked_toml::read;
    use crate::{ImageName, ImageVersion};

    fn data(text: &str) -> Result<Vec<Data<ImageRef>>, String> {
        read(text, |doc| Some(read_data(doc))).map_err(|faults| faults.to_string())
    }

    #[test]
    fn images_are_strings_and_volumes_tables() {
        let text = "data = ['content', { name = 'pg', kind = 'exclusive', size_mib = 64 },\n\
                    { name = 'fs', kind = 'shared', size_mib = 1 }]";
        let read = data(text).expect("good");
        let content: ImageName = "content".parse().expect("name");
        assert_eq!(read[0].image().map(|image| &image.name), Some(&content));
        let pg = DataVolume {
            name: "pg".parse().expect("name"),
            kind: DataKind::Exclusive,
            size_mib: 64,
        };
        assert_eq!(read[1].volume(), Some(&pg));
        assert_eq!(read[2].volume().map(|volume| volume.kind), Some(DataKind::Shared));
        assert_eq!(data("").expect("absent"), []);
    }

    #[test]
    fn faults_have_line_and_key() {
        let good = "data = [\n'content',\n{ name = 'pg', kind = 'exclusive', size_mib = 64 }]";
        let many: Vec<_> = (0..16).map(|i| format!("'i{i}'")).collect();
        for (from, to, fault) in [
            ("'content'", "'Content'", "line 2: data[0]: image name"),
            ("'content'", "7", "line 2: data[0]: must be a string or a table, not integer"),
            ("'content'", "'content', 'content'", "line 1: data: names an image twice"),
            ("'content'", "{ name = 'pg', kind = 'shared', size_mib = 1 }", "names a volume twice"),
            ("'content'", &many.join(", "), "line 1: data: has 17 volumes; 15 are allowed"),
            ("name = 'pg', ", "", "line 3: data[1].name: is missing"),
            ("'pg'", "'p g'", "line 3: data[1].name: data volume name"),
            ("exclusive", "private", "data[1].kind: \"private\" is not a kind; these are"),
            ("kind = 'exclusive', ", "", "data[1].kind: is missing"),
            ("size_mib = 64", "size_mib = 0", "data[1].size_mib: 0 is not within 1 to"),
            (", size_mib = 64", "", "data[1].size_mib: is missing"),
            ("size_mib = 64", "size_mib = 64, image = 'x'", "data[1].image: is not a key here"),
        ] {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good, "{from} is not there");
            let found = data(&text).expect_err(from);
            assert!(found.contains(fault), "{fault:?} is not in:\n{found}");
        }
        let found = data("data = 'content'").expect_err("no array");
        assert!(found.contains("data: must be an array of strings and tables"), "{found}");
    }

    #[test]
    fn what_was_written_before_there_were_volumes_reads_as_images() {
        let version = ImageVersion::of(b"x");
        let old = serde_json::to_string(&[version]).expect("text");
        let read: Vec<Data<ImageVersion>> = serde_json::from_str(&old).expect("read");
        assert_eq!(read, [Data::Image(version)]);
        let text = r#"["content",{"name":"pg","kind":"exclusive","size_mib":64}]"#;
        let read: Vec<Data<ImageRef>> = serde_json::from_str(text).expect("read");
        assert_eq!(serde_json::to_string(&read).expect("text"), text);
        assert!(serde_json::from_str::<Data<ImageRef>>(r#"{"name":"P"}"#).is_err());
    }
}
