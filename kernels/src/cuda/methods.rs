//! Which way to multiply is fastest for which product, kept on disk beside the compiled kernels.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;

use stallfree_device::{CubinCache, Dtype};

use super::{DecodeGemmSpec, Division, Epilogue};

/// A product's shape: `y[rows, out] = x[rows, inner] · wᵀ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProductShape {
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Columns of `y`.
    pub out: usize,
    /// Columns of `x` and `w`.
    pub inner: usize,
    /// The type of `y`: that of `x`, or f32.
    pub output: Dtype,
    /// What is done to the product; with [`Epilogue::SiluMul`] `w` has `2 * out` rows.
    pub epilogue: Epilogue,
}

/// A way to multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// Our kernel that works in registers.
    Skinny,
    /// Our kernel for Hopper.
    Decode(DecodeGemmSpec, Division),
    /// The library's candidate with this number among those for so many rows.
    Library { rows: usize, candidate: usize },
    /// The product and its epilogue one after the other.
    Apart,
}

/// The fastest ways on one GPU, for shapes whose rows stand for a range.
#[derive(Debug)]
pub(super) struct Methods {
    path: PathBuf,
    /// All that they depend on: the file's first line.
    identity: String,
    map: HashMap<ProductShape, Method>,
    /// Those that are for this process alone.
    passing: HashSet<ProductShape>,
}

impl Methods {
    /// Reads what was found before for the same `identity`; a file that is not there or is for another is as good as empty.
    pub(super) fn read(cache: &CubinCache, name: &str, identity: String) -> Self {
        let path = cache.folder().join(format!("products-{name}.txt"));
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let map = text.strip_prefix(&identity).map(parse).unwrap_or_default();
        Self { path, identity, map, passing: HashSet::new() }
    }

    pub(super) fn get(&self, shape: ProductShape) -> Option<Method> {
        self.map.get(&shape).copied()
    }

    /// Keeps one; if it is to `last`, also on disk. A folder that cannot be written costs time at the next start only.
    pub(super) fn insert(&mut self, shape: ProductShape, method: Method, last: bool) {
        self.map.insert(shape, method);
        if !last {
            self.passing.insert(shape);
            return;
        }
        let lasting = self.map.iter().filter(|(shape, _)| !self.passing.contains(*shape));
        let mut lines: Vec<String> =
            lasting.map(|(shape, method)| format!("{shape} = {method}")).collect();
        lines.sort();
        let text = format!("{}\n{}\n", self.identity, lines.join("\n"));
        drop(self.write(&text));
    }

    /// Writes beside the name and renames, so that a reader never sees half a file.
    fn write(&self, text: &str) -> std::io::Result<()> {
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let thread = std::thread::current().id(); // ranks have one each
        let part = self.path.with_extension(format!("{}-{thread:?}.part", std::process::id()));
        std::fs::write(&part, text)?;
        std::fs::rename(part, &self.path)
    }
}

fn parse(text: &str) -> HashMap<ProductShape, Method> {
    let parse_line = |line: &str| {
        let (shape, method) = line.split_once(" = ")?;
        let shape = parse_shape(shape)?;
        Some((shape, parse_method(method, shape)?))
    };
    text.lines().filter_map(parse_line).collect()
}

impl fmt::Display for ProductShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, out, inner, output, epilogue } = self;
        write!(f, "{rows} {out} {inner} {output:?} {epilogue:?}")
    }
}

fn parse_shape(text: &str) -> Option<ProductShape> {
    let words: Vec<&str> = text.split(' ').collect();
    let &[rows, out, inner, output, epilogue] = &words[..] else { return None };
    let (rows, out, inner) = (rows.parse().ok()?, out.parse().ok()?, inner.parse().ok()?);
    let outputs = [Dtype::Bf16, Dtype::F16, Dtype::F32];
    let output = outputs.into_iter().find(|dtype| format!("{dtype:?}") == output)?;
    let epilogues = [Epilogue::None, Epilogue::SiluMul];
    let epilogue = epilogues.into_iter().find(|other| format!("{other:?}") == epilogue)?;
    Some(ProductShape { rows, out, inner, output, epilogue })
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skinny => write!(f, "skinny"),
            Self::Decode(spec, division) => {
                let DecodeGemmSpec { tokens, warpgroups, .. } = spec;
                let Division { blocks, sharers } = division;
                write!(f, "decode {tokens} {warpgroups} {blocks} {sharers}")
            }
            Self::Library { rows, candidate } => write!(f, "library {rows} {candidate}"),
            Self::Apart => write!(f, "apart"),
        }
    }
}

fn parse_method(text: &str, shape: ProductShape) -> Option<Method> {
    let mut words = text.split(' ');
    let kind = words.next()?;
    let numbers: Vec<usize> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
    Some(match (kind, &numbers[..]) {
        ("skinny", []) => Method::Skinny,
        ("apart", []) => Method::Apart,
        ("library", &[rows, candidate]) => Method::Library { rows, candidate },
        ("decode", &[tokens, warpgroups, blocks, sharers]) => {
            let f32_out = shape.output == Dtype::F32;
            let mut specs = DecodeGemmSpec::for_rows(tokens, shape.epilogue, f32_out);
            let spec = specs.find(|s| (s.tokens, s.warpgroups) == (tokens, warpgroups))?;
            Method::Decode(spec, Division { blocks, sharers })
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(rows: usize, epilogue: Epilogue) -> ProductShape {
        ProductShape { rows, out: 6144, inner: 4096, output: Dtype::Bf16, epilogue }
    }

    #[test]
    fn what_was_found_is_read_back_for_the_same_identity_only() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CubinCache::new(&folder.path().join("kernels"));
        let read = |identity: &str| Methods::read(&cache, "gpu", identity.to_owned());
        let mut methods = read("a");
        let spec = DecodeGemmSpec::for_rows(100, Epilogue::SiluMul, false).last().unwrap();
        let all = [
            (shape(1, Epilogue::None), Method::Skinny),
            (shape(8, Epilogue::None), Method::Library { rows: 5, candidate: 3 }),
            (shape(8, Epilogue::SiluMul), Method::Apart),
            (
                shape(128, Epilogue::SiluMul),
                Method::Decode(spec, Division { blocks: 132, sharers: 92 }),
            ),
        ];
        for (shape, method) in all {
            methods.insert(shape, method, true);
        }
        let passing = shape(512, Epilogue::None);
        methods.insert(passing, Method::Skinny, false);
        methods.insert(all[0].0, all[0].1, true);
        assert_eq!(methods.get(passing), Some(Method::Skinny));
        assert_eq!(read("a").get(passing), None);
        let again = read("a");
        for (shape, method) in all {
            assert_eq!(again.get(shape), Some(method), "{shape}");
        }
        assert_eq!(read("b").get(all[0].0), None);
    }

    #[test]
    fn a_damaged_line_is_no_method() {
        let whole = "1 6144 4096 Bf16 None = library 1 2";
        assert_eq!(parse(whole).len(), 1);
        for cut in 1..whole.len() {
            let kept = parse(&whole[..cut]);
            assert!(kept.is_empty(), "{:?}", &whole[..cut]);
        }
    }
}
