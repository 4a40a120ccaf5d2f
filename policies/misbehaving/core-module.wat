;; WebAssembly, but a core module instead of a component.
(module
  (memory (export "memory") 1)
  (func (export "decide") (result i32) i32.const 0)
)
