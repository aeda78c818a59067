// include/runtime.h for P/Invoke: structs in its order, and the functions that Runtime.cs uses. The shared library is found
// as "runtime": libruntime.so, libruntime.dylib or runtime.dll.
using System;
using System.Runtime.InteropServices;

namespace RuntimeEngine
{
    /// <summary>A handle of the library: a number, typed by who holds it.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct Id
    {
        public ulong Value;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct NativeError
    {
        public uint StructSize;
        public int Code;
        public int Detail;
        public fixed byte Message[512];
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct EngineOptionsNative
    {
        public uint StructSize;
        public int Backend;
        public uint Device;
        public int Compute;
        public int RunMode;
        public uint Reserved;
        public ulong SoftLimit;
        public ulong HardLimit;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct ModelOptionsNative
    {
        public uint StructSize;
        public uint MaxTokens;
        public uint MaxRequests;
        public uint MaxStepTokens;
        public ulong KvBytes;
        public int KvType;
        public int MaxAdapters;
        public uint MaxRank;
        public uint Reserved;
        public ulong Userdata;
    }

    /// <summary>How to answer. Zero in a field means its default; see runtime_generate_options.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct GenerateOptions
    {
        internal uint StructSize;
        /// <summary>Most tokens to generate.</summary>
        public uint MaxTokens;
        /// <summary>The answer does not end before so many.</summary>
        public uint MinTokens;
        /// <summary>0: always the most likely token.</summary>
        public float Temperature;
        /// <summary>Only the most likely tokens that together reach this probability.</summary>
        public float TopP;
        /// <summary>Only tokens at least this share as likely as the most likely one.</summary>
        public float MinP;
        /// <summary>Only this many of the most likely tokens.</summary>
        public uint TopK;
        /// <summary>Above 1: tokens of the text so far become less likely.</summary>
        public float RepetitionPenalty;
        /// <summary>Subtracted from the logits of tokens that the answer has.</summary>
        public float PresencePenalty;
        /// <summary>Subtracted once for each time that the answer has a token.</summary>
        public float FrequencyPenalty;
        internal int GrammarType;
        /// <summary>Requests with smaller numbers are served first.</summary>
        public int Priority;
        /// <summary>Same seed, same text.</summary>
        public ulong Seed;
        internal IntPtr Grammar;
        internal UIntPtr GrammarLen;
        internal IntPtr Stop;
        internal UIntPtr StopCount;
        /// <summary>Non-zero: go on past the model's end-of-text tokens.</summary>
        public uint IgnoreEos;
        internal uint Logprobs;
        internal ulong Userdata;
    }

    /// <summary>How to train. Zero in a field means its default; see runtime_training_options.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct TrainingOptions
    {
        internal uint StructSize;
        /// <summary>LoRA rank.</summary>
        public uint Rank;
        /// <summary>LoRA alpha.</summary>
        public double Alpha;
        /// <summary>Peak learning rate.</summary>
        public double LearningRate;
        /// <summary>Decoupled weight decay; -1: none.</summary>
        public double WeightDecay;
        /// <summary>Norm that the gradient is clipped to; -1: no clipping.</summary>
        public double MaxGradNorm;
        /// <summary>Passes over the examples; excludes MaxSteps.</summary>
        public double Epochs;
        /// <summary>Optimizer steps; excludes Epochs.</summary>
        public uint MaxSteps;
        /// <summary>Dropout on the adapter's input.</summary>
        public float Dropout;
        /// <summary>Examples of a micro-batch.</summary>
        public uint BatchSize;
        /// <summary>Micro-batches of a step.</summary>
        public uint GradAccum;
        /// <summary>Tokens after which an example is cut.</summary>
        public uint MaxLength;
        /// <summary>Steps over which the learning rate rises; -1: none.</summary>
        public int WarmupSteps;
        internal int Schedule;
        internal int Optimizer;
        internal int Loss;
        internal uint Flags;
        /// <summary>Decides the initial adapter and the order of examples.</summary>
        public ulong Seed;
        internal ulong Userdata;
        internal IntPtr TargetModules;
        internal UIntPtr TargetModulesLen;
        internal IntPtr Resume;
        internal UIntPtr ResumeLen;
        internal Id InitAdapter;
        /// <summary>1 DPO, 2 hinge, 3 IPO, 4 ORPO: the job takes pairs; 0: examples.</summary>
        public int Preference;
        internal uint Reserved;
        /// <summary>How near preference tuning stays to the model without adapter.</summary>
        public double Beta;
        /// <summary>Adds so many times the cross-entropy of the chosen answers.</summary>
        public double RpoAlpha;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct EventNative
    {
        public uint StructSize;
        public int Type;
        public ulong Object;
        public ulong Userdata;
        public int Status;
        public int FinishReason;
        public IntPtr Text;
        public UIntPtr TextLen;
        public IntPtr Ids;
        public UIntPtr IdCount;
        public IntPtr Values;
        public UIntPtr ValueCount;
        public ulong Done;
        public ulong Total;
        public double Loss;
        public double GradNorm;
        public double LearningRate;
        public double Seconds;
        public double QueueSeconds;
        public double PrefillSeconds;
        public double DecodeSeconds;
        public uint PromptTokens;
        public uint CachedTokens;
        public uint GeneratedTokens;
        public uint Reserved;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct AdapterRef
    {
        public Id Adapter;
        public float Scale;
        public uint Reserved;
    }

    internal static unsafe class Native
    {
        private const string Lib = "runtime";

        [DllImport(Lib)] public static extern IntPtr runtime_version();
        [DllImport(Lib)] public static extern uint runtime_abi_version();
        [DllImport(Lib)] public static extern IntPtr runtime_status_name(int status);
        [DllImport(Lib)] public static extern int runtime_engine_create(ref EngineOptionsNative options, out Id engine, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_engine_release(Id engine);
        [DllImport(Lib)] public static extern int runtime_engine_step(Id engine, uint budget, out uint busy, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_engine_poll(Id engine, EventNative* events, UIntPtr capacity, out UIntPtr count, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_engine_wait(Id engine, uint timeout, out uint ready, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_model_load(Id engine, byte[] path, UIntPtr len, ref ModelOptionsNative options, out Id model, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_model_wait(Id model, uint timeout, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_model_release(Id model);
        [DllImport(Lib)] public static extern int runtime_session_create(Id model, out Id session, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_session_append_text(Id session, byte[] text, UIntPtr len, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_session_append_messages(Id session, byte[] json, UIntPtr len, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_session_set_adapters(Id session, AdapterRef[] adapters, UIntPtr count, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_session_generate(Id session, ref GenerateOptions options, out Id request, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_session_fork(Id session, out Id fork, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_session_rewind(Id session, UIntPtr tokens, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_session_get_token_count(Id session, out UIntPtr count, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_session_release(Id session);
        [DllImport(Lib)] public static extern int runtime_request_cancel(Id request, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_adapter_load(Id model, byte[] path, UIntPtr len, out Id adapter, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_adapter_save(Id adapter, byte[] path, UIntPtr len, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_adapter_release(Id adapter);
        [DllImport(Lib)] public static extern int runtime_training_create(Id model, ref TrainingOptions options, out Id training, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_training_add_example(Id training, byte[] json, UIntPtr len, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_training_add_preference(Id training, byte[] json, UIntPtr len, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_training_seal(Id training, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_training_start(Id training, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_training_cancel(Id training, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_training_snapshot_adapter(Id training, ref Id adapter, ref NativeError error);
        [DllImport(Lib)] public static extern int runtime_training_release(Id training);
    }
}
