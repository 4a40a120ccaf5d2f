;; A sound component, but no policy.
(component
  (core module $module
    (func (export "answer") (result i32) i32.const 42))
  (core instance $instance (instantiate $module))
  (func $answer (result u32) (canon lift (core func $instance "answer")))
  (instance $greeter (export "answer" (func $answer)))
  (export "example:greeter/greeter@1.0.0" (instance $greeter))
)
