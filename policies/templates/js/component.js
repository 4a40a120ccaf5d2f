// The component: the policy behind the functions of `wit/routing.wit`. The only file that runs inside WebAssembly alone.
import { log } from "signalbox:policy/diagnostics@0.2.0";
import policy from "./policy.js";
import { component } from "./signalbox.js";

export const routing = component(policy, log);
