//! Dicts. Keys are in the order of insertion, and equal as in Python: `1`, `1.0` and `True` are one key.

use std::hash::{Hash, Hasher};
use std::rc::Rc;

use indexmap::{Equivalent, IndexMap};

use super::super::budget::{Budget, Charge, Items};
use super::super::fault::{Fault, Res};
use super::super::ops;
use super::{Text, Value, depth_above};

/// A mapping.
#[derive(Debug)]
pub(in super::super) struct Dict {
    map: IndexMap<Key, (Value, Value)>,
    depth: u32,
    _charges: Vec<Charge>,
}

/// A key, reduced to what decides equality. The original key is stored with the entry's value.
#[derive(Clone, Debug)]
pub(in super::super) enum Key {
    Str(Text),
    Int(i128),
    /// The bits of a float that is not a whole number.
    Float(u64),
    None,
    Undefined,
    Tuple(Rc<(Vec<Key>, Charge)>),
    /// The address of a value that is equal only to itself.
    Object(usize),
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => a.as_str() == b.as_str(),
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Float(a), Self::Float(b)) => a == b,
            (Self::None, Self::None) | (Self::Undefined, Self::Undefined) => true,
            (Self::Tuple(a), Self::Tuple(b)) => a.0 == b.0,
            (Self::Object(a), Self::Object(b)) => a == b,
            _ => false,
        }
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            // It hashes as a plain str, because lookups by name use one.
            Self::Str(text) => text.as_str().hash(state),
            Self::Int(i) => i.hash(state),
            Self::Float(bits) => bits.hash(state),
            Self::None => 1u8.hash(state),
            Self::Undefined => 2u8.hash(state),
            Self::Tuple(keys) => keys.0.hash(state),
            Self::Object(address) => address.hash(state),
        }
    }
}

impl Equivalent<Key> for str {
    fn equivalent(&self, key: &Key) -> bool {
        matches!(key, Key::Str(text) if text.as_str() == self)
    }
}

impl Key {
    /// The key of a value.
    pub(in super::super) fn of(budget: &Budget, value: &Value) -> Res<Self> {
        budget.step()?;
        Ok(match value {
            Value::Str(text) => {
                budget.pass(text.as_str().len())?;
                Self::Str(text.clone())
            }
            Value::Int(i) => Self::Int(*i),
            Value::Bool(b) => Self::Int(i128::from(*b)),
            Value::Float(x) if x.fract() == 0.0 && x.abs() < 1e30 => Self::Int(*x as i128),
            Value::Float(x) => Self::Float(x.to_bits()),
            Value::None => Self::None,
            Value::Undefined(_) => Self::Undefined,
            Value::Tuple(seq) => {
                // Tuples that share parts are expanded, and each part is charged.
                let mut keys = Items::new(budget);
                seq.items().iter().try_for_each(|item| keys.push(Self::of(budget, item)?))?;
                Self::Tuple(Rc::new(keys.finish()))
            }
            Value::Range(range) => Self::Object(range.len),
            Value::Stream(stream) => Self::Object(Rc::as_ptr(stream) as usize),
            Value::Namespace(namespace) => Self::Object(Rc::as_ptr(namespace) as usize),
            Value::Macro(callee) => Self::Object(Rc::as_ptr(callee) as usize),
            Value::Loop(state) => Self::Object(Rc::as_ptr(state) as usize),
            Value::Function(name) => Self::Object(name.as_ptr() as usize),
            other => return Fault::failed(format!("unhashable type: '{}'", other.type_name())),
        })
    }
}

impl Dict {
    /// Starts an empty dict.
    pub(in super::super) fn builder(budget: &Budget) -> DictBuilder<'_> {
        DictBuilder { budget, map: IndexMap::new(), charges: Vec::new() }
    }

    pub(in super::super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn depth(&self) -> u32 {
        self.depth
    }

    pub(in super::super) fn get_str(&self, key: &str) -> Option<&Value> {
        self.map.get(key).map(|(_, value)| value)
    }

    pub(in super::super) fn get(&self, budget: &Budget, key: &Value) -> Res<Option<&Value>> {
        if let Value::Str(text) = key {
            budget.pass(text.as_str().len())?;
            return Ok(self.get_str(text.as_str()));
        }
        Ok(self.map.get(&Key::of(budget, key)?).map(|(_, value)| value))
    }

    pub(in super::super) fn entry(&self, i: usize) -> Option<(&Value, &Value)> {
        self.map.get_index(i).map(|(_, (key, value))| (key, value))
    }

    pub(in super::super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Value, &Value)> {
        self.map.values().map(|(key, value)| (key, value))
    }

    /// Whether both have the same keys with equal values.
    pub(in super::super) fn equals(&self, budget: &Budget, other: &Self) -> Res<bool> {
        if self.len() != other.len() {
            return Ok(false);
        }
        for (key, (_, value)) in &self.map {
            let Some((_, other)) = other.map.get(key) else { return Ok(false) };
            if !ops::equal(budget, value, other)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A dict that grows within the budget.
#[derive(Debug)]
pub(in super::super) struct DictBuilder<'b> {
    budget: &'b Budget,
    map: IndexMap<Key, (Value, Value)>,
    charges: Vec<Charge>,
}

impl DictBuilder<'_> {
    /// Sets the value of a key. An existing key keeps its position and its spelling.
    pub(in super::super) fn insert(&mut self, key: Value, value: Value) -> Res<()> {
        let hashed = Key::of(self.budget, &key)?;
        let n_bytes = size_of::<(u64, usize, Key, (Value, Value), Charge)>() + size_of::<usize>();
        self.charges.push(self.budget.charge(n_bytes)?);
        match self.map.entry(hashed) {
            indexmap::map::Entry::Occupied(mut slot) => slot.get_mut().1 = value,
            indexmap::map::Entry::Vacant(slot) => {
                slot.insert((key, value));
            }
        }
        Ok(())
    }

    pub(in super::super) fn finish(self) -> Res<Value> {
        let depth = depth_above(self.map.values().map(|(_, value)| value))?;
        Ok(Value::Dict(Rc::new(Dict { map: self.map, depth, _charges: self.charges })))
    }
}
